"""Words that the Penn Treebank tokenizer of the caption benchmarks treats apart, found by asking it about each."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ABBREVIATIONS = _words(
    """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif capt
    cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb
    fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj
    mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn
    pfc ph plc ppte ppty pres prof profs pte ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc
    sgt spc sq sr st ste supt supts sys tel tenn thu thurs tue tues univ va vs vt wed wis wisc wm wyo
    """
)
"""A full stop after them belongs to them, whatever their case."""
CAPITALIZED = _words(
    """
    ark az del ill la mass miss ore pa tex wash
    """
)
"""A full stop after them belongs to them if they start with a capital."""
BEFORE_NUMBER = _words(
    """
    art ca fig figs no nos op pp
    """
)
"""A full stop after them belongs to them if a number follows."""
FIRST_WORDS = _words(
    """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More
    Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When
    While Yet You
    """
)
"""They start a sentence: the full stop after a single letter before them ends one."""
SPLIT = {
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "lemme": "lem me", "gimme": "gim me",
    "'tis": "'t is", "'twas": "'t was",
}  # fmt: skip
"""Words that become two."""
