from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Rust

from vlm.common.errors import WeightsError
from vlm.processors.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def fast_folder(tmp_path: Path) -> Path:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust = Rust(models.BPE(vocab={c: i for i, c in enumerate(sorted(alphabet))}, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken("<|im_end|>"), AddedToken("<|pad|>")])
    rust.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "pad_token": {"content": "<|pad|>"}, "bos_token": None})
    )
    return tmp_path


def test_every_plain_chunk_has_its_own_dummy_space(tokenizer: Tokenizer) -> None:
    chunks = tokenizer.encode("a boat") + [tokenizer.eos] + tokenizer.encode("a boat")
    assert tokenizer.encode("a boat</s>a boat") == chunks


def test_ids_without_a_piece_decode_to_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a red boat")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, 10**6]) == "a red boat"


def test_special_ids_are_skipped_or_shown(tokenizer: Tokenizer) -> None:
    ids = [1, *tokenizer.encode("a boat"), tokenizer.pad, 2]
    assert tokenizer.decode(ids) == "a boat"
    assert tokenizer.decode(ids, skip_special=False) == "<s>a boat$$</s>"


def test_the_pad_token_is_the_folders_and_other_pieces_stay_in_answers(llm_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(llm_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": Tokenizer.from_folder(llm_folder).vocab_size}))
    named = json.loads((tmp_path / "special_tokens_map.json").read_text())
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named | {"pad_token": "<pad>"}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.piece(tokenizer.pad) == "<pad>"
    price = [*tokenizer.encode("two"), tokenizer.id_of("$$")]
    assert tokenizer.decode(price) == "two$$"
    published = Tokenizer.from_folder(tmp_path, pad_token="$$")
    assert published.piece(published.pad) == "$$"
    assert published.decode(price) == "two"  # as the published code reads it
    none = Tokenizer.from_folder(llm_folder, pad_token="")
    assert none.pad == none.unk
    assert none.decode(price) == "two$$"


@pytest.mark.parametrize("kind", ["sentencepiece", "fast"])
def test_streamed_pieces_join_to_the_whole_text(kind: str, llm_folder: Path, fast_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(llm_folder if kind == "sentencepiece" else fast_folder)
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.vocab_size + 1) for _ in range(rng.randrange(1, 12))]
        stream = tokenizer.stream()
        assert "".join([*(stream.push(i) for i in ids), stream.flush()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["sentencepiece", "fast"])
def test_stream_holds_back_half_a_character(kind: str, llm_folder: Path, fast_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(llm_folder if kind == "sentencepiece" else fast_folder)
    ids = tokenizer.encode("中é")
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "�" not in "".join(pieces)
    assert [p for p in pieces if p] == ["中", "é"]
    assert stream.flush() == ""


def test_pickles_into_workers(tokenizer: Tokenizer, fast_folder: Path) -> None:
    for one in (tokenizer, Tokenizer.from_folder(fast_folder)):
        copy = pickle.loads(pickle.dumps(one))
        assert copy.encode("a red <s> boat") == one.encode("a red <s> boat")
        assert (copy.bos, copy.eos, copy.pad, copy.vocab_size) == (one.bos, one.eos, one.pad, one.vocab_size)


def test_folder_with_tokenizer_json_only(fast_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(fast_folder)
    ids = tokenizer.encode("hi<|im_end|>", bos=True)
    assert tokenizer.bos is None
    assert ids[-1] == tokenizer.eos
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "hi<|im_end|>"
    assert tokenizer.pad == tokenizer.encode("<|pad|>")[0]


def test_empty_strings_in_the_folder_do_not_move_the_begin_id(llm_folder: Path, tmp_path: Path) -> None:
    """Base models of early conversions have empty strings where the special tokens should be named."""
    shutil.copy(llm_folder / "tokenizer.model", tmp_path)
    empty = {"bos_token": "", "eos_token": "", "unk_token": ""}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(empty))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(empty))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.unk) == (1, 2, 0)
    assert tokenizer.encode("<s>a boat</s>")[::3] == [1, 2]


def test_added_tokens_are_cut_out_of_the_text(llm_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(llm_folder, tmp_path, dirs_exist_ok=True)
    size = Tokenizer.from_folder(llm_folder).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<img>": size, "[PAD]": size + 1}))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(size + 2): {"content": "<keep>", "lstrip": False, "rstrip": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == size + 3
    boat = tokenizer.encode("a boat")
    assert tokenizer.encode("a boat <img> a boat") == [*boat, size, *boat]  # plain strings eat spaces around them
    assert tokenizer.encode("a boat<keep>a boat") == [*boat, size + 2, *boat]
    assert tokenizer.encode("a boat <keep>")[-2:] != [boat[-1], size + 2]
    assert tokenizer.decode([*boat, size, *boat]) == "a boat<img>a boat"


STRING = "<img>"
MAPPING = {"content": "<img>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


@pytest.mark.parametrize(
    ("files", "left", "right"),
    [
        ({"special_tokens_map.json": {"additional_special_tokens": [STRING]}}, True, True),
        ({"special_tokens_map.json": {"additional_special_tokens": [MAPPING]}}, False, False),
        ({"special_tokens_map.json": {"additional_special_tokens": [{**MAPPING, "lstrip": True}]}}, True, False),
        ({"tokenizer_config.json": {"additional_special_tokens": [STRING]}}, True, True),
        ({"tokenizer_config.json": {"additional_special_tokens": [MAPPING]}}, False, False),
        ({}, True, True),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_spellings_of_special_tokens(
    llm_folder: Path, tmp_path: Path, files: dict, left: bool, right: bool, listed: bool
) -> None:
    """A plain string takes the blanks around it, a mapping says so; one without an id gets the next."""
    shutil.copy(llm_folder / "tokenizer.model", tmp_path)
    size = Tokenizer.from_folder(tmp_path).vocab_size
    if listed:
        (tmp_path / "added_tokens.json").write_text(json.dumps({STRING: size}))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    options = {} if files or listed else {"special_tokens": [STRING]}
    tokenizer = Tokenizer.from_folder(tmp_path, **options)
    enc = Tokenizer.from_folder(llm_folder).encode
    want = [*enc("a boat" if left else "a boat \n"), size, *enc("a boat" if right else "\n a boat")]
    assert tokenizer.encode("a boat \n<img>\n a boat") == want
    assert tokenizer.is_special(STRING)
    assert tokenizer.id_of(STRING) == size
    if files or not listed:
        assert tokenizer.decode([size, *enc("a boat")]) == "a boat"


def test_begin_and_end_named_by_plain_strings(llm_folder: Path, tmp_path: Path) -> None:
    """A string in special_tokens_map.json takes blanks, one in tokenizer_config.json does not."""
    shutil.copy(llm_folder / "tokenizer.model", tmp_path)
    boat = Tokenizer.from_folder(llm_folder).encode("a boat")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert Tokenizer.from_folder(tmp_path).encode("a boat </s>a boat") != [*boat, 2, *boat]
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert Tokenizer.from_folder(tmp_path).encode("a boat </s> a boat") == [*boat, 2, *boat]


def test_a_mapping_wins_over_a_string_of_another_role(llm_folder: Path, tmp_path: Path) -> None:
    """LLaMA folders often name the unknown token as padding too."""
    shutil.copytree(llm_folder, tmp_path, dirs_exist_ok=True)
    named = json.loads((tmp_path / "special_tokens_map.json").read_text()) | {"pad_token": "<unk>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("a <unk> b") == Tokenizer.from_folder(llm_folder).encode("a <unk> b")


def test_special_tokens_of_a_composition(llm_folder: Path, fast_folder: Path) -> None:
    for folder in (llm_folder, fast_folder):
        plain = Tokenizer.from_folder(folder, "")
        options = {"special_tokens": ["<a>", "<b>"], "new_pad_token": "<p>"}
        tokenizer = Tokenizer.from_folder(folder, "", **options)
        size = plain.vocab_size
        assert tokenizer.encode("<a><b>") == [size, size + 1]
        boat = plain.encode("a boat")
        assert tokenizer.encode("a boat <b> a boat") == [*boat, size + 1, *boat]
        assert tokenizer.decode([*boat, size]) == "a boat"
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.encode("a <a>", literal=[(0, 1)]) == tokenizer.encode("a <a>")
        assert copy.vocab_size == tokenizer.vocab_size
    assert Tokenizer.from_folder(llm_folder, "", **options).pad == size_of(llm_folder) + 2
    assert Tokenizer.from_folder(llm_folder, **options).pad == size_of(llm_folder) + 2  # before the published piece
    named = Tokenizer.from_folder(fast_folder, "", **options)  # this folder names a pad token
    assert named.pad == named.encode("<|pad|>")[0]
    assert not named.is_special("<p>")


def size_of(folder: Path) -> int:
    return Tokenizer.from_folder(folder).vocab_size


def test_forced_ids_take_blanks(llm_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(llm_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<unk>", "eos_token": "<unk>"}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert Tokenizer.from_folder(tmp_path).bos == 0
    tokenizer = Tokenizer.from_folder(tmp_path, bos_id=1, eos_id=2)
    assert (tokenizer.bos, tokenizer.eos) == (1, 2)
    boat = tokenizer.encode("a boat")
    assert tokenizer.encode("<s> a boat </s>") == [1, *boat, 2]


@pytest.mark.parametrize("kind", ["sentencepiece", "fast"])
def test_literal_text_holds_no_special_tokens(kind: str, llm_folder: Path, fast_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(llm_folder if kind == "sentencepiece" else fast_folder)
    mark = "</s>" if kind == "sentencepiece" else "<|im_end|>"
    end = tokenizer.eos
    text = f"a {mark} b{mark}"
    whole = tokenizer.encode(text)
    assert whole.count(end) == 2
    inner = tokenizer.encode(text, literal=[(0, len(text) - len(mark))])
    assert inner.count(end) == 1
    assert inner[-1] == end
    assert tokenizer.decode(inner) == f"a {mark} b"
    assert tokenizer.encode(text, literal=[(0, len(text))]).count(end) == 0
    assert tokenizer.encode(text, literal=[(0, 1), (len(text) - 2, len(text))]).count(end) == 1
    clean = "a red boat"
    assert tokenizer.encode(clean, literal=[(2, 5)]) == tokenizer.encode(clean)
    assert tokenizer.encode("", literal=[(0, 0)]) == []


CONTROLS = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "[PAD]")


@pytest.fixture(scope="session")
def user_defined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece folder whose vocabulary lists chat symbols as user-defined pieces; no file names them."""
    folder = tmp_path_factory.mktemp("user_defined")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red boat on the river", "im_start im_end eot_id start of turn", "what is it"] * 9),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<tool>"],
        minloglevel=2,
    )
    return folder


def _folders(kind: str, llm_folder: Path, user_defined: Path, tmp_path: Path) -> Path:
    """Folders that list chat symbols in various ways."""
    if kind == "user-defined":
        return user_defined
    if kind == "fast, not special":
        rust = Rust(
            models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
        )
        rust.pre_tokenizer, rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        rust.add_tokens([AddedToken(t, special=False, normalized=False) for t in (*CONTROLS, "<think>")])
        rust.save(str(tmp_path / "tokenizer.json"))
        return tmp_path
    shutil.copytree(llm_folder, tmp_path, dirs_exist_ok=True)
    size = Tokenizer.from_folder(llm_folder).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({t: size + k for k, t in enumerate(CONTROLS[3:])}))
    return tmp_path


@pytest.mark.parametrize("kind", ["added", "user-defined", "fast, not special"])
def test_control_tokens_never_come_from_a_users_words(
    kind: str, llm_folder: Path, user_defined: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_folder(_folders(kind, llm_folder, user_defined, tmp_path))
    tokenizer = pickle.loads(pickle.dumps(tokenizer))
    controls = {tokenizer.id_of(t) for t in CONTROLS} - {None}
    for token in CONTROLS:
        for words in (token, f"a {token} boat", f"{token}{token}a", f"a{token}", f"<{token}>"):
            ids = tokenizer.encode(words, literal=[(0, len(words))])
            assert not controls & set(ids), words
            assert tokenizer.decode(ids).strip() == words.strip()
            framed = f"<|im_start|>{words}<|im_end|>"
            ids = tokenizer.encode(framed, literal=[(12, 12 + len(words))])
            if tokenizer.id_of("<|im_end|>") is not None:
                wanted = [tokenizer.id_of("<|im_start|>"), tokenizer.id_of("<|im_end|>")]
                assert [i for i in ids if i in controls] == wanted, words


def test_what_is_no_control_token_stays_as_the_vocabulary_has_it(
    llm_folder: Path, user_defined: Path, tmp_path: Path
) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(user_defined / "tokenizer.model"))
    tokenizer = Tokenizer.from_folder(user_defined)
    for words in ("use <tool> here", "a  red boat", "<|im_start|>a boat<|im_end|> a"):
        assert tokenizer.encode(words) == model.encode(words)
    assert tokenizer.id_of("<tool>") in tokenizer.encode("use <tool> here", literal=[(0, 15)])
    fast = Tokenizer.from_folder(_folders("fast, not special", llm_folder, user_defined, tmp_path))
    assert fast.encode("a <think>", literal=[(0, 9)])[-1] == fast.id_of("<think>")


@pytest.mark.parametrize("legacy", [True, False, None])
def test_dummy_spaces_as_transformers_writes_them(llm_folder: Path, tmp_path: Path, legacy: bool | None) -> None:
    from transformers import LlamaTokenizer

    shutil.copytree(llm_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    token = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    roles = {f"{role}_token": {"content": text, **token} for role, text in (("bos", "<s>"), ("eos", "</s>"))}
    stated = {} if legacy is None else {"legacy": legacy}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | roles | stated))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    theirs = LlamaTokenizer.from_pretrained(tmp_path, legacy=legacy is not False)
    ours = Tokenizer.from_folder(tmp_path)
    texts = ["a boat", "<s>a boat</s>", "a boat</s>a boat</s>", "</s>\na boat"]
    if legacy is False:  # the fast tokenizer never writes a second space, the slow one of the published code does
        texts += ["a boat</s> a boat", "<s></s>  a  boat"]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert Tokenizer.from_folder(tmp_path, legacy=True).encode("</s>a") == [2, *ours.encode("a")]


def test_pad_falls_back_where_the_piece_is_missing(llm_folder: Path) -> None:
    assert Tokenizer.from_folder(llm_folder, pad_token="no such piece").pad == 0


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "neither tokenizer.model nor tokenizer.json"),
        ({"tokenizer.model": b"junk"}, "not a sentencepiece model"),
        ({"tokenizer.json": b"{}"}, "not a tokenizers file"),
        ({"tokenizer.json": b"<html>"}, "is an HTML page"),
    ],
)
def test_unusable_folders_are_named(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_folder_and_broken_config(llm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such folder"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    shutil.copy(llm_folder / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json is not JSON"):
        Tokenizer.from_folder(tmp_path)


def test_pieces_as_the_vocabulary_spells_them(tokenizer: Tokenizer, fast_folder: Path) -> None:
    ids = tokenizer.encode("a river", bos=True)
    assert "".join(map(tokenizer.piece, ids)) == "<s>▁a▁river"
    assert tokenizer.piece(10**6) == tokenizer.piece(-5) == ""
    fast = Tokenizer.from_folder(fast_folder)
    assert all(fast.piece(i) for i in fast.encode("river"))
