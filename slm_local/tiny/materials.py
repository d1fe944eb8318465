"""What things are weighed? Words of the training side, words kept for tests, and words that do not exist.

It knows nothing of weights or questions.
"""

from dataclasses import dataclass
from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KNOWN = _words("""
    water bricks feathers air sand gold silver iron lead steel copper tin zinc wood paper cotton wool stone rocks
    coal salt sugar flour rice beans corn wheat oats bread butter cheese milk cream honey oil wine beer juice tea
    coffee cocoa eggs meat beef pork fish shrimp apples pears plums grapes cherries lemons oranges bananas melons
    peaches berries nuts almonds peanuts seeds potatoes tomatoes carrots onions garlic peppers cabbage lettuce peas
    mushrooms soup pasta noodles candy chocolate cookies cake ice snow steam mud clay dirt soil gravel cement
    concrete glass plastic rubber leather cloth fabric rope string wire nails screws bolts chains coins marbles
    pebbles shells leaves grass hay straw flowers roses petals bark sticks logs planks boards tiles pipes bottles
    cans boxes books letters magazines newspapers cards pencils pens crayons paint ink glue soap shampoo candles
    wax matches ashes smoke fog hydrogen oxygen nitrogen gasoline diesel tar asphalt bones hair fur skin horns
    toys balls dolls blocks buttons beads rings diamonds rubies pearls emeralds amber jade brass bronze aluminum
    titanium uranium mercury sulfur chalk plaster foam sponge cork bamboo hammers tools wheels tires batteries
    phones laptops keyboards cables magnets socks shirts shoes boots hats gloves coats blankets towels curtains
    carpets chairs tables lamps clocks bells drums flutes kites balloons bubbles clouds dust pollen spices pepper
    vinegar mustard ketchup jam syrup yogurt tofu lentils barley hops yeast vanilla mint basil ginger turnips
    radishes spinach celery olives figs dates mangoes kiwis coconuts pineapples raisins popcorn crackers pretzels
    dumplings sausages bacon ham turkey chicken salmon tuna lobsters crabs oysters clams sardines""")

UNSEEN = _words("""
    helium pumpkins granite pillows silk walnuts velvet quartz cactus platinum lava popsicles cucumbers denim
    marshmallows hamsters umbrellas porcelain nickel cashews broccoli pancakes violins slippers limestone linen
    gravy puppies toothpaste charcoal sawdust parsley strawberries sapphires mattresses nylon""")
"""Real words that occur nowhere in training, neither whole nor as a part of a spliced word."""

QUALITIES = ("wet", "dry", "old", "new", "fresh", "frozen", "hot", "cold", "loose", "broken", "red", "green")

_SYLLABLES = _words("""
    ba be bi bo bu ca ce co cu da de di do du fa fe fi fo ga ge go ha he hi ho ja jo ka ke ki la le li lo lu ma
    me mi mo mu na ne ni no pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo wa we wi za zo bra
    cla dre fla gri pla pri sta ste sto tra tre tri ton ter tin tar ver vel ven ner net mar mel min mon lar len lin
    ser sil sor ker kin per pin por der dal don bel ber gan gar ling ster ment ness ing""")
_VOWELS = "aeiou"
_CONSONANTS = "bcdfghjklmnpqrstvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Word pieces of the vocabulary: those that open a word and those that go on."""

    starts: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()


def pseudo_word(rng: Random, pieces: Pieces) -> str:
    """Return a word that does not exist, 3 to 14 letters long.

    A share is made of vocabulary pieces, so that each piece is copied often:
    without that, unseen words with a rare piece were miscopied nearly always.
    """
    while True:
        word = _draw(rng, pieces)
        if 3 <= len(word) <= 14 and word not in UNSEEN:
            return word


def _draw(rng: Random, pieces: Pieces) -> str:
    kind = rng.random()
    if kind < 0.4 and pieces.starts:
        return rng.choice(pieces.starts) + "".join(rng.choices(pieces.rest, k=rng.randint(1, 3)))
    if kind < 0.6:
        return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4))) + rng.choice(("", "", "s", "es"))
    if kind < 0.8:
        head, tail = rng.choice(KNOWN), rng.choice(KNOWN)
        return head[: rng.randint(2, 5)] + tail[-rng.randint(2, 5) :]
    pairs = (rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 4)))
    return "".join(pairs) + rng.choice(("", "n", "r", "s", "t", "l", "x"))
