"""JSON schemas as constraints: whatever a model prefers, its answer parses and validates."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Rust

from vlm.common.errors import PromptError, UserError
from vlm.inference.batching.answer import Asking
from vlm.inference.constraints.json_schema import SchemaConstraint, Vocabulary
from vlm.inference.engine import Engine
from vlm.processors.tokenizer.tokenizer import Tokenizer

LLM = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "llm"
NESTED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["a cat", "naïve 日本", 3, None]},
        "boxes": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 999}, "ok": {"type": "boolean"}},
                "required": ["x", "ok"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["name", "kind", "boxes"],
    "additionalProperties": False,
}


def fast(folder: Path, kind: str) -> Tokenizer:
    """A ``tokenizer.json`` whose pieces are bytes (as of GPT-2) or words with bytes in reserve (as of LLaMA)."""
    if kind == "bytes":
        pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ{", '{"', "ĠĠ", "ca", "ï", "æĹ"]
        rust = Rust(models.BPE(vocab={c: i for i, c in enumerate(pieces)}, merges=[]))
        rust.pre_tokenizer, rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        pieces = ["<unk>", *(f"<0x{k:02X}>" for k in range(256)), "▁", "▁cat", "cat", '{"', '":', "日", "true"]
        rust = Rust(models.BPE(vocab={c: i for i, c in enumerate(pieces)}, merges=[], byte_fallback=True))
        rust.pre_tokenizer = pre_tokenizers.Metaspace()
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        rust.decoder = decoders.Sequence(steps)
    rust.add_special_tokens([AddedToken("<|im_end|>")])
    rust.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return Tokenizer.from_folder(folder)


@pytest.fixture(params=["sentencepiece", "bytes", "pieces"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_folder(LLM) if request.param == "sentencepiece" else fast(tmp_path, request.param)


def vocabulary_of(tokenizer: Tokenizer, banned: tuple[int, ...] = ()) -> Vocabulary:
    assert tokenizer.eos is not None
    return Vocabulary(tokenizer, tokenizer.vocab_size + 7, [tokenizer.eos], banned)


def written(constraint: SchemaConstraint, vocabulary: Vocabulary, draw: random.Random, most: int = 2000) -> list[int]:
    """Tokens of a model without an opinion, the end token among them unless the answer is cut."""
    ids: list[int] = []
    while len(ids) < most and (not ids or ids[-1] not in vocabulary.ends):
        allowed = constraint.allowed()
        assert allowed.shape == (vocabulary.size,) and bool(allowed.any())
        ids.append(draw.choice(allowed.nonzero().flatten().tolist()))
        constraint.accept(ids[-1])
    return ids


@pytest.mark.parametrize(
    "schema",
    [
        NESTED,
        {"type": "array", "items": {"type": ["number", "null"]}, "maxItems": 4},
        {"type": "string", "pattern": "^[a-z]{2,4} \\d{1,3}$"},
        {"anyOf": [{"const": 'a "quoted" \\ text\n'}, {"type": "boolean"}]},
        {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
            "value": {"type": "integer", "minimum": -5, "maximum": 5},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        }, "required": ["value", "next"], "additionalProperties": False}}},
    ],
)  # fmt: skip
def test_answers_follow_the_schema(tokenizer: Tokenizer, schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    vocabulary, draw = vocabulary_of(tokenizer), random.Random(0)
    for _ in range(5):
        ids = written(vocabulary.constraint(schema), vocabulary, draw)
        assert ids[-1] == tokenizer.eos
        jsonschema.validate(json.loads(tokenizer.decode(ids)), schema)


def test_end_is_allowed_only_where_the_answer_is_complete(tokenizer: Tokenizer) -> None:
    vocabulary = vocabulary_of(tokenizer)
    constraint = vocabulary.constraint({"type": "object", "properties": {}, "additionalProperties": False})
    for sign in "{}":
        assert not constraint.allowed()[tokenizer.eos] and not constraint.may_end
        allowed = constraint.allowed().nonzero().flatten().tolist()
        constraint.accept(next(i for i in allowed if tokenizer.bytes_of(i) == sign.encode()))
    assert constraint.may_end and constraint.allowed().nonzero().flatten().tolist() == [tokenizer.eos]
    constraint.accept(tokenizer.eos)
    assert constraint.allowed().nonzero().flatten().tolist() == [tokenizer.eos]


def test_special_and_banned_tokens_are_never_allowed(tokenizer: Tokenizer) -> None:
    banned = tuple(i for i in range(tokenizer.vocab_size) if tokenizer.bytes_of(i) == b"ca" or i % 50 == 49)
    banned = tuple(i for i in banned if len(tokenizer.bytes_of(i)) > 1)
    vocabulary = vocabulary_of(tokenizer, banned)
    constraint = vocabulary.constraint({"type": "string"})
    constraint.accept(next(i for i in range(tokenizer.vocab_size) if tokenizer.bytes_of(i) == b'"'))
    allowed = constraint.allowed()
    special = [i for i in range(tokenizer.vocab_size) if not tokenizer.is_plain(i)]
    assert special and not allowed[list(banned)].any() and not allowed[special].any() and not allowed[-7:].any()


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "nothing"}, "Invalid type"),
        ({"type": "object", "if": {}}, "Unimplemented"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "http://host/schema"}, "not present"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "greater than"),
        ({"enum": []}, "JSON schema"),
        ({"const": "x" * 300_000}, "allowed are 262,144"),
        ({"const": float("nan")}, "JSON schema"),
    ],
)
def test_refused_schemas(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        vocabulary_of(Tokenizer.from_folder(LLM)).constraint(schema)


def test_deep_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema, "type": "array"}
    with pytest.raises(PromptError, match="JSON schema"):
        vocabulary_of(Tokenizer.from_folder(LLM)).constraint(schema)


def test_vocabulary_without_letters_or_end_is_refused() -> None:
    tokenizer = Tokenizer.from_folder(LLM)
    brace = tuple(i for i in range(tokenizer.vocab_size) if tokenizer.bytes_of(i) == b"{")
    with pytest.raises(UserError, match="every letter of JSON"):
        vocabulary_of(tokenizer, brace)
    with pytest.raises(UserError, match="no end token"):
        Vocabulary(tokenizer, tokenizer.vocab_size, [])


def test_vocabulary_of_an_engine(engine: Engine) -> None:
    vocabulary = Vocabulary.of(engine)
    assert vocabulary.size == 512 and vocabulary.ends == (2,)
    ids = written(vocabulary.constraint(NESTED), vocabulary, random.Random(1))
    assert json.loads(engine.processor.tokenizer.decode(ids))["boxes"]


def test_bytes_of_tokens_are_the_text(tokenizer: Tokenizer) -> None:
    text = 'naïve 日本語 😀 {"a": [1, true]}\n  cat  '
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.bytes_of, ids)).decode().strip() == tokenizer.decode(ids).strip() == text.strip()
    assert tokenizer.eos is not None and tokenizer.bytes_of(tokenizer.eos).decode() in ("</s>", "<|im_end|>")
    assert tokenizer.bytes_of(10**6) == b"" and not tokenizer.is_plain(10**6) and not tokenizer.is_plain(-1)
    inside = tokenizer.encode_inside("a cat</s>")
    assert tokenizer.eos not in inside and b"".join(map(tokenizer.bytes_of, inside)).strip() == b"a cat</s>"


def test_stop_texts_of_the_template_do_not_end_json(engine: Engine) -> None:
    text = f"a {engine.processor.template.stop[0]} b"
    constraint = Vocabulary.of(engine).constraint({"enum": [text]})
    answer = engine.submit("Hello", asking=Asking(constraint=constraint), max_new_tokens=60, do_sample=False)
    assert json.loads(answer.result()) == text and answer.finish == "stop"


@pytest.mark.parametrize(
    "text, fits", [('{ "a": 1 }', True), ('{\n  "a": 1\n}', True), ('{\n\n"a": 1}', False), ('{  "a": 1}', False)]
)
def test_white_space_is_a_blank_or_an_indented_line(tmp_path: Path, text: str, fits: bool) -> None:
    tokenizer = fast(tmp_path, "bytes")
    constraint = vocabulary_of(tokenizer).constraint({"type": "object", "properties": {"a": {"type": "integer"}}})
    taken = []
    for sign in text.encode():
        token = next(i for i in range(tokenizer.vocab_size) if tokenizer.bytes_of(i) == bytes([sign]))
        taken.append(bool(constraint.allowed()[token]))
        constraint.accept(token)
    assert all(taken) == fits
