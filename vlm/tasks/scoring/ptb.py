"""Tokens as the Penn Treebank tokenizer of the caption benchmarks makes them, without Java.

``pycocoevalcap`` writes all captions to one file, one on each line, runs Stanford's ``PTBTokenizer`` on it and drops a
list of punctuation. :func:`tokenize` gives the same tokens. The rules here were found by asking that tokenizer
about many texts; of several rules that match at a place, the one that reads furthest wins, then the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from vlm.tasks.scoring.ptb_words import ABBREVIATIONS, BEFORE_NUMBER, CAPITALIZED, FIRST_WORDS, SPLIT

_MARKS = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
DROPPED = frozenset(_MARKS.split(" "))
"""What ``pycocoevalcap`` drops. Brackets are lower-cased before, ``-lrb-``, so that they stay: as in its numbers."""

# Neither letters nor digits: also superscripts and fractions.
_NO = "\\W_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u218b\u2460-\u249b"
_L = f"(?:[^{_NO}\\d]|[\u0300-\u036f\u0900-\u0903\u093a-\u094f]|&[aeiouAEIOU](?:acute|grave|uml|circ);)"
_A = "['\u2019]"
_LD = rf"(?:{_L}|\d)"
_WORD = rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_AUX = "(?:[msd]|re|ve|ll)"
_NUM = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_ACRO = r"[A-Za-z](?:\.[A-Za-z])*\."
_ACRO2 = r"[A-Za-z](?:\.[A-Za-z])+\."
_JOIN = "[- \u00a0]"
_ENDINGS = (
    "c|h|x|gz|pl|ps|py|bat|bmp|cgi|cpp|dll|docx?|exe|gif|html?|jar|jpe?g|mov|mp3|pdf|php|png|ppt|sql|tar|txt|wav|xml|zip|"
    "java|class"
)
_SEP = r"[ \u00a0]"

_PHONE = rf"(?:\d{{2,4}}{_JOIN})?\d{{2,4}}{_JOIN}\d{{3,4}}{_JOIN}?\d{{3,5}}"
_NAME = r"[A-Za-z][\w:.-]*"
_VALUE = r"(?:'[^']*'|\"[^\"]*\"|[\w:.-]+)"
_TAG = rf"<(?:/{_NAME}\s*|{_NAME}(?:\s+{_NAME}(?:\s*=\s*{_VALUE})?)*\s*/?\s*)>"

Rule = tuple[re.Pattern[str], str | None]


def _rules(*rules: str | tuple[str, str]) -> list[Rule]:
    """Each: group 1 is the token, the whole match is what the rule reads; with what stands for it, if not itself."""
    pairs = [(rule, None) if isinstance(rule, str) else rule for rule in rules]
    return [(re.compile(pattern), shown) for pattern, shown in pairs]


_ADDRESS = (
    r"(https?://[^\s<>\"|()]+[^\s<>\"|.!?(){},-])",
    r"((?:www\.(?:[^\s\"`'<>|.!?,_$()]+\.)+[A-Za-z]{2,4}|(?:[^\s\"`'<>|.!?,_$()/:;\\@{}\u20ac\[\]-]+\.)+(?:com|net|org|edu))(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?)(?![A-Za-z0-9])",
    r"(<?[A-Za-z0-9][^\s\"<>|()]*@(?:[^\s\"<>|().]+\.)*[^\s\"<>|(){}.]+>?)",
)
_COMPOUND = (
    rf"([^{_NO}](?:[^{_NO}]|[.,])*(?:-(?:[dDoOlL]{_A}[A-Za-z0-9]+|{_ACRO2}|[^{_NO}]+))+)",
    r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})",
    rf"({_LD}+(?:[-_]{_LD}+)+)",
    rf"((?:{_WORD}|{_NUM}|\d+{_LD}+|[^{_NO}](?:[^{_NO}]|[.,])*(?:-[^{_NO}]+)+)\.)(?=([,;:]))\2",
    rf"({_LD}+\.(?i:{_ENDINGS}))(?![A-Za-z0-9])",
    r"(\d+(?:\.\d+)+\.[xX])(?![A-Za-z0-9])",
)
_LETTER = _rules(
    r"([nN]['\u2019`][tT])",
    r"([A-Za-z]+)(?=([nN]['\u2019`][tT]))\2",
    rf"({_WORD})(?=({_A}(?i:{_AUX})))\2",
    rf"({_WORD})",
    rf"((?:[dDlL]|o|{_L}*O){_A}{_LD}{{2,}}(?:-{_LD}+)*)",
    rf"([nN]{_A}{_L}{{2,}})",
    rf"([A-HJ-MO-XZ]{_A}{_LD}{{2,}})",
    r"(x_[-^x=~<>'])",
    rf"((?i:{_L}+[aeiouy]{_A}[aeiou]{_L}*))",
    rf"((?i:[eo]{_A}er|ne{_A}er|c{_A}mon|s{_A}mores|cap{_A}n|o{_A}o))",
    rf"([yY]{_A})(?=({_L}))\2",
    rf"([dDjJlL]{_A}|[oO][lL]{_A})",
    rf"({_ACRO})",
    r"([Pp][Hh]\.[Dd]\.?)",
    r"([A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+)",
    r"([cC]\+\+|[cCfF]#)",
    r"([A-Z]+\$)",
    *_COMPOUND,
    *_ADDRESS,
)
_DIGIT = _rules(
    rf"({_NUM})",
    rf"((?:\d{{1,4}}[-{_SEP[1:-1]}])?\d{{1,4}}(?:\\?/|\u2044)\d{{1,4}})",
    rf"(\d+{_L}{_LD}*)",
    rf"({_PHONE})",
    *_COMPOUND,
    *_ADDRESS,
)
_OTHER = _rules(
    rf"('(?i:{_AUX}))(?![A-Za-z])",
    rf"(\u2019(?i:{_AUX}))",
    r"('[nN]')",
    r"('(?i:tis|twas))(?![A-Za-z0-9])",
    r"('(?i:em))",
    rf"({_A}(?:[nN]|(?i:til|cause)))(?!{_LD}|'[sS])",
    rf"({_A}\d0)(?!\S)",
    rf"({_A}\d0s)",
    (r"(''|``|\.{3,}|-{2,})", ""),
    r"([-^x=~<>']_[-^x=~<>'])",
    r"(\([-^x=~<>'\"][_.]?[-^x=~<>'\"]\))",
    rf"({_A}[nN]{_A})",
    rf"(\+{_PHONE}|[-+]?{_NUM})",
    rf"(\(\d{{2,3}}\){_SEP}?\d{{3,4}}{_JOIN}?\d{{3,5}})",
    r"(@[A-Za-z_][A-Za-z0-9_]*)",
    rf"(#{_L}+)",
    r"([?!]{2,})",
    r"(\\\*|\*+|_+|#{2,}|@{2,}|<{2,}|>{2,})",
    r"([<>]?[:;=][-o']?(?:[][)({DPpO|@\\]))(?![A-Za-z0-9])",
    r"(\^_\^)",
    rf"({_TAG})",
    (r"(\u00a3)", "#"),
    (r"(\u20ac|\u0080)", "$"),
    (r"(\u00a2)", "cents"),
    (r"(\u00bd)", "1/2"),
    (r"(\u00bc)", "1/4"),
    (r"(\u00be)", "3/4"),
    (r"(\u2153)", "1/3"),
    (r"(\u2154)", "2/3"),
    (r"(&amp;)", "&"),
    (r"(&lt;)", "<"),
    (r"(&gt;)", ">"),
    (r"(&quot;|&apos;|&nbsp;)", ""),
    r"(&#\d+;)",
    (r"(['\"`\u2018\u2019\u201c\u201d\u00ab\u00bb\u2039\u203a\u2013\u2014\u2026.?!,:;-])", ""),
    (r"([\U00010000-\U0010ffff\u200b-\u200f\ufeff\ufe0f])", ""),
    *_ADDRESS,
    r"(\S)",
)  # fmt: skip
BRACKETS = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CURLY_AUX = re.compile(rf"\u2019{_AUX}\Z")
_NUMBER_FOLLOWS = re.compile(r"\s?\d")
_LINE_ENDS = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile(r"\s")
LOOKED_AT = 80
_ABBREVIATION = re.compile(rf"({_L}+)\.")
_SIMPLE = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*(?=,?(?:[ \n]|$))")
_PLAIN = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*\Z")
_FIRST = re.compile(rf"\s+(?:{'|'.join(sorted(FIRST_WORDS))}|M[rs]\.|{_TAG})(?:\s|$)")


def tokenize(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of each caption, lower-case, without the dropped punctuation.

    A caption's last token can depend on the start of the next caption, as it does in ``pycocoevalcap``: in ``plan B.``
    the full stop belongs to the letter unless the next line starts a sentence. A token such as ``1 1/2`` has a no-break
    space in it.
    """
    lines = [_LINE_ENDS.sub(" ", caption) for caption in captions]
    result = []
    for number, line in enumerate(lines):
        plain = _plain(line)
        if plain is None:
            following = lines[number + 1] if number + 1 < len(lines) and _open(line) else ""
            plain = list(_lexed(line, "\n" + following[:LOOKED_AT]))
        result.append(plain)
    return result


def _plain(line: str) -> list[str] | None:
    """The tokens of a line of plain words with a comma or a full stop here and there; None: it has more."""
    result = []
    chunks = line.split(" ")
    last = len(chunks) - 1
    for place, chunk in enumerate(chunks):
        word = chunk[:-1] if chunk[-1:] == "," or (chunk[-1:] in (".", "!", "?") and place == last) else chunk
        if not word:
            continue
        if not _is_plain(word) or (chunk[-1] == "." and _open(chunk)):
            return None
        result.append(word.lower())
    return result


@lru_cache(maxsize=1 << 16)
def _is_plain(word: str) -> bool:
    return _PLAIN.match(word) is not None and word.lower() not in SPLIT


def _open(line: str) -> bool:
    """Whether the full stop at the end may belong to the word before it."""
    word = line.rstrip().rpartition(" ")[2]
    if not word.endswith("."):
        return False
    return len(word) == 2 or not word[:-1].isalpha() or _abbreviated(word[:-1]) or word[:-1].lower() in BEFORE_NUMBER


def _abbreviated(word: str) -> bool:
    low = word.lower()
    return low in ABBREVIATIONS or (low in CAPITALIZED and word[:1].isupper())


@lru_cache(maxsize=1 << 14)
def _lexed(line: str, following: str) -> tuple[str, ...]:
    """The tokens of a line by rules, which may look at the text after it."""
    line = line.replace("\u00ad", "")
    text, place, result = line + following, 0, []
    while place < len(line):
        if text[place].isspace():
            place += 1
            continue
        simple = _SIMPLE.match(text, place)
        if simple and simple[0].lower() not in SPLIT:
            result.append(simple[0].lower())
            place = simple.end()
            continue
        token, place = _next(text, place)
        result += [piece for piece in _shown(token).split(" ") if piece and piece not in DROPPED]
    return tuple(result)


def _shown(token: str) -> str:
    """How a token is written: lower-case, brackets by name, contractions with a straight apostrophe."""
    low = _SPACES.sub("\u00a0", token.lower())
    low = "'" + low[1:] if _CURLY_AUX.match(low) else low.replace("n\u2019t", "n't") if len(low) == 3 else low
    low = BRACKETS.get(low) or low.replace("(", "-lrb-").replace(")", "-rrb-").replace("&amp;", "&")
    return SPLIT.get(low, low)


def _next(text: str, place: int) -> tuple[str, int]:
    """The token at a place, and where it ends."""
    furthest, end, token = place, place, ""
    for pattern, shown in _rules_for(text[place]):
        found = pattern.match(text, place)
        if found and found.end() > furthest:
            furthest, end, token = found.end(), found.end(1), found[1] if shown is None else shown
    word = _ABBREVIATION.match(text, place)
    if word and word.end() >= furthest:
        return (word[0], word.end()) if _keeps_stop(text, word) else (word[1], word.end(1))
    return token, end


@lru_cache(maxsize=1 << 12)
def _rules_for(first: str) -> Sequence[Rule]:
    if first == "&":
        return [*_LETTER, *_OTHER]
    return _LETTER if first.isalpha() else _DIGIT if first.isdecimal() else _OTHER


def _keeps_stop(text: str, word: re.Match[str]) -> bool:
    """Whether the full stop after a word belongs to it, as after an abbreviation or a single letter."""
    after = text[word.end() : word.end() + LOOKED_AT]
    if len(word[1]) == 1 and word[1].isascii():
        return _FIRST.match(after) is None
    if word[1].lower() in BEFORE_NUMBER:
        return _NUMBER_FOLLOWS.match(after) is not None
    return _abbreviated(word[1]) or after[:1] in (",", ";", ":")
