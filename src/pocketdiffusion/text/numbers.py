"""How many of what a prompt asks for: numbers in words and digits, and their nouns.

    targets("three red circles, a blue square and no stars")
        -> [Target("red circle", 3), Target("blue square", 1), Target("star", 0)]

A phrase runs from its number to the next conjunction, preposition or comma; its noun is put in the singular.
"a picture of", "in a row" and "on a white background" ask for nothing, and neither does "a few". English
only; what has no number has no target.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace


def words_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall("[a-z]+", text))


WORDS = words_of("no one two three four five six seven eight nine ten eleven twelve")
WORDS += words_of("thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = words_of("twenty thirty forty fifty sixty seventy eighty ninety")
NUMBERS = {word: i for i, word in enumerate(WORDS)}
NUMBERS |= {word: 10 * i for i, word in enumerate(TENS, 2)} | {"zero": 0, "a": 1, "an": 1, "single": 1}
ALONE = {"dozen": 12, "hundred": 100, "thousand": 1000}  # also without a number before them
PAIRS = {"pair": 2, "pairs": 2, "couple": 2, "couples": 2, "dozens": 12} | ALONE
VAGUE = {*words_of("few several many some lot lots number various")}  # how many, nobody says
STOP = {
    *words_of("and or with without of on in at to by from next near beside behind above below over under"),
    *words_of("left right between inside outside that which is are while against"),
}
NOTHING = {*words_of("picture image photo photograph drawing painting background scene view")}
NOTHING |= {*words_of("row line group set bunch pattern grid pile stack")}
# nouns whose singular no rule finds
ODD = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse"}
ODD |= {
    "feet": "foot",
    "geese": "goose",
    "teeth": "tooth",
    "leaves": "leaf",
    "wolves": "wolf",
    "buses": "bus",
}
SAME = {*words_of("sheep deer fish glasses scissors bus")}


@dataclass(frozen=True)
class Target:
    """``phrase``: words as they stand, the noun last and in the singular."""

    phrase: str
    count: int
    where: tuple[int, int] = field(default=(0, 0), compare=False)  # of the noun in the prompt, characters

    @property
    def noun(self) -> str:
        return self.phrase.split()[-1]


def singular(noun: str) -> str:
    if noun in ODD:
        return ODD[noun]
    if noun in SAME or noun.endswith("ss") or len(noun) < 3:
        return noun
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if re.search(r"(ss|x|zz|ch|sh)es$", noun):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") else noun


def number(word: str) -> int | None:
    digits = word.replace(",", "")
    return int(digits) if digits.isdigit() else NUMBERS.get(word)


def below_100(words: Sequence[str], i: int) -> tuple[int | None, int]:
    """The number that begins at ``i``, and where it ends: tens and ones are two words."""
    count = number(words[i]) if i < len(words) else None
    if count is None:
        return None, i
    if words[i] in TENS and i + 1 < len(words) and words[i + 1] in WORDS[1:10]:
        return count + NUMBERS[words[i + 1]], i + 2
    return count, i + 1


def counted(words: Sequence[str], i: int) -> tuple[int | None, int]:
    """The same with dozens, hundreds and pairs: "two pairs of", "a hundred and five"."""
    count, i = (1, i) if words[i] in ALONE else below_100(words, i)
    if count is None:
        return None, i
    while i < len(words) and words[i] in PAIRS:
        large, count, i = words[i], count * PAIRS[words[i]], i + 1
        i += i < len(words) and words[i] == "of"
        if large in ("hundred", "thousand"):
            more, end = below_100(words, i + (i < len(words) and words[i] == "and"))
            # "a hundred and a star" is another thing
            if more is not None and more > 1 and words[end - 1] not in ("a", "an"):
                count, i = count + more, end
    return count, i


def targets(prompt: str) -> list[Target]:
    """In the order of the prompt; the same phrase twice adds up."""
    pieces = list(re.finditer(r"[a-z]+|\d{1,3}(?:,\d{3})+|\d+|[,.;:]", prompt.lower()))
    words, i = [piece.group() for piece in pieces], 0
    found: dict[str, Target] = {}
    while i < len(words):
        count, i = counted(words, i)
        if count is None:
            i += 1
            continue
        if i < len(words) and words[i] in VAGUE:
            continue
        start = i
        while i < len(words) and words[i].isalpha() and words[i] not in STOP and number(words[i]) is None:
            i += 1
        phrase = words[start:i]
        if phrase and not NOTHING & set(phrase):
            said = " ".join([*phrase[:-1], singular(phrase[-1])])
            first = found.get(said, Target(said, 0, pieces[i - 1].span()))
            found[said] = replace(first, count=first.count + count)
    return list(found.values())


def places(prompt: str, phrase: str) -> list[tuple[int, int]]:
    """Where the noun of ``phrase``, in whichever number, stands in the prompt after its other words."""
    *before, noun = phrase.split()
    pieces = list(re.finditer("[a-z]+", prompt.lower()))
    words = [piece.group() for piece in pieces]
    return [
        piece.span()
        for i, piece in enumerate(pieces)
        if singular(words[i]) == noun and words[max(0, i - len(before)) : i] == before
    ]


def given(flags: Sequence[str]) -> list[Target]:
    """Targets from NAME=NUMBER, such as "red circles=3"."""
    made = []
    for flag in flags:
        name, _, count = flag.partition("=")
        words = name.lower().split()
        if not words or not count.strip().isdigit():
            raise ValueError(f'--count {flag!r}: expected NAME=NUMBER, such as "red circles=3"')
        made.append(Target(" ".join([*words[:-1], singular(words[-1])]), int(count)))
    return made
