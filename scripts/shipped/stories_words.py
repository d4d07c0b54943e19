"""The words of the stories: who and what they can be about, and what goes with what."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.shipped.stories_grammar import Rule, Word

GIRLS = """Mia Anna Lily Rosa Emma Clara Nora Zoe Ruby Ella Maya Sara Lucy Alice Ivy Hazel Leila
Tara Nina Amara Freya Greta Kira Olive Paula Wanda Yara June Dora Elsa"""

BOYS = """Tom Ben Max Sam Leo Finn Noah Hugo Oscar Jack Adam Peter Omar Luca Theo Felix Emil Ravi
Anton Bruno Carlo David Eric Hans Ivan Karim Marco Nico Otto Paul"""

THINGS = {
    "cloth": """kite/light hat/light scarf/light/warm coat/warm blanket/warm flag/light doll
        bag/carry cap/light shawl/warm""",
    "wood": """boat wagon/ride sled/ride flute/music drum/music stool chair/light puppet cart/ride
        bowl/water spoon whistle/music fiddle/music""",
    "metal": """bell/shiny key/shiny whistle kettle/water bucket/water spoon/shiny trumpet/music
        lantern/lamp ring/shiny horn/music coin/shiny can/water""",
    "paper": "book map/light letter/light picture crown/light boat fan/light star/light card/light",
    "clay": """cup/water jar/water bottle/water lamp/lamp pot/water vase marble/shiny plate
        bead/shiny pitcher/water""",
    "straw": "basket/carry mat/warm wreath hat/light broom",
}
"""Things by material, each with what it is good for."""

_BROKE = {
    "cloth": "tore",
    "wood": "cracked",
    "metal": "bent",
    "paper": "ripped",
    "clay": "broke",
    "straw": "split",
}
_DAMAGED = {
    "cloth": "torn",
    "wood": "cracked",
    "metal": "bent",
    "paper": "ripped",
    "clay": "broken",
    "straw": "split",
}

# Who mends a thing of a material, with what, and what one makes it of, how.
_CRAFTS = {
    "cloth": ("tailor", "a needle and thread", "some soft cloth", "sewed"),
    "wood": ("carpenter", "a hammer and nails", "a piece of wood", "carved"),
    "metal": ("blacksmith", "fire and tongs", "an old iron bar", "forged"),
    "paper": ("printer", "paste and a brush", "a sheet of paper", "folded"),
    "clay": ("potter", "glue and patience", "a lump of clay", "shaped"),
    "straw": ("weaver", "a bundle of reeds", "an armful of straw", "wove"),
}

QUALITIES = """red blue green yellow white black purple orange pink brown golden silver small big
old new tiny pretty striped round plain bright heavy"""

TRAITS = """brave clever shy curious cheerful patient quiet careful honest gentle lively friendly
stubborn dreamy polite helpful"""

SETTINGS = "small little busy quiet sleepy pretty lonely old tidy noisy"
HOMES = "village town cottage farmhouse mill castle inn cabin tower bakery"

# What is near each land: places to go, and spots where a thing can lie.
LANDS = {
    "sea": (
        "the beach,the harbour,the lighthouse,the white cliffs",
        "under a fishing net,behind a grey rock,between two shells,in a heap of seaweed",
    ),
    "forest": (
        "the clearing,the tall oak,the mossy path,the fern hollow",
        "under the dry leaves,behind a tree stump,between the roots,in a blackberry bush",
    ),
    "river": (
        "the stone bridge,the waterfall,the ferry,the muddy bank",
        "under the willow,behind the reeds,between the pebbles,in an empty canoe",
    ),
    "mountain": (
        "the cave,the narrow pass,the snowy ridge,the shepherd's hut",
        "under a fir tree,behind a boulder,between two stones,in a patch of snow",
    ),
    "lake": (
        "the jetty,the sandy shore,the boathouse,the swimming place",
        "under the wooden steps,behind the boathouse,between the water lilies,in a rowing boat",
    ),
    "meadow": (
        "the pond,the windmill,the apple orchard,the garden gate",
        "under a haystack,behind the fence,between the flowers,in the long grass",
    ),
}

DREAMS = """sailor baker doctor painter singer teacher farmer dancer pilot gardener writer captain
fisher builder juggler explorer musician clockmaker"""

FAMILY = "mother father grandmother grandfather aunt uncle sister brother cousin"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"

WEATHERS = {
    "sunny": "The sun warmed the stones, and the sky was clear.",
    "windy": "The wind pushed the clouds along and shook every branch.",
    "foggy": "The fog was so thick that even the birds were silent.",
    "cloudy": "Soft clouds covered the sky like wool.",
    "frosty": "Frost covered the ground and cracked under their feet.",
    "warm": "The warm air smelled of flowers and honey.",
    "cool": "A cool breeze came down from the hills.",
    "misty": "Mist lay over the ground, and spiders had hung it with pearls.",
}
TIMES = {"morning": ("at noon", "lunch"), "afternoon": ("in the evening", "supper")}

SORROWS = "sad worried upset unhappy miserable gloomy helpless hopeless"
JOYS = "happy glad proud thankful delighted joyful content relieved"

FOODS = """bread cheese cake soup honey jam porridge pie pudding noodles fruit toast salad stew
waffles pears plums cherries nuts carrots pancakes cookies grapes raisins"""

MANNERS = "wise kind clever gentle friendly funny brave quiet curious old young polite"
WALKERS = """rabbit squirrel hedgehog deer badger mouse frog turtle beaver donkey sheep otter lizard
mole toad pony"""
FLYERS = "owl crow duck goose robin swan sparrow pigeon stork falcon"
CLIMBERS = "cat squirrel lizard mouse"
TALL = "tree,roof,chimney,wall,mast,church tower,pine,ladder"

BIRD_THIEVES = "magpie raven jackdaw seagull"
OTHER_THIEVES = "fox goat puppy monkey raccoon weasel"

YOUNG = {
    "lamb": "sheep",
    "calf": "cow",
    "kitten": "cat",
    "puppy": "dog",
    "foal": "horse",
    "duckling": "duck",
    "chick": "hen",
    "piglet": "pig",
    "fawn": "deer",
    "cub": "bear",
    "gosling": "goose",
    "kid": "goat",
}

STORMS = {"rain": "rainbow", "thunder": "rainbow", "hail": "clear sky", "snow": "bright moon"}
SHELTERS = "a barn,an empty shed,a hollow tree,an old chapel,a hay loft,a stable"
PASTIMES = "told stories,sang songs,counted the drops,played riddles,talked about summer"
FAULTS = "too small,crooked,too wide,ugly,too thin,full of holes"
JUNK = (
    "rusty nail,broken shell,lost glove,wet feather,bent stick,dead beetle,torn sock,glass button"
)


def _split(text: str) -> list[str]:
    return [part.strip() for part in (text.split(",") if "," in text else text.split())]


def _plain(text: str, *tags: str) -> list[Word]:
    return [Word(word, tags=frozenset(tags)) for word in _split(text)]


def _people() -> list[Word]:
    girl = {"he": "she", "him": "her", "his": "her", "child": "girl", "self": "herself"}
    boy = {"he": "he", "him": "him", "his": "his", "child": "boy", "self": "himself"}
    return [Word(name, girl) for name in _split(GIRLS)] + [Word(name, boy) for name in _split(BOYS)]


def _things() -> list[Word]:
    """Returns each thing; one that exists in several materials once for each."""
    things = []
    for material, names in THINGS.items():
        worker, tool, stuff, made = _CRAFTS[material]
        forms = {"broke": _BROKE[material], "damaged": _DAMAGED[material], "worker": worker}
        forms |= {"tool": tool, "stuff": stuff, "made": made}
        for entry in names.split():
            name, *uses = entry.split("/")
            things.append(Word(name, forms, frozenset([material, *uses])))
    return things


def _near(index: int) -> list[Word]:
    """Returns the places (0) or spots (1) of all lands, each tagged with its land."""
    return [word for land, phrases in LANDS.items() for word in _plain(phrases[index], land)]


def _animals() -> list[Word]:
    climbed = {"went": "climbed", "came": "came walking by"}
    flew = {"went": "flew", "came": "came flying by"}
    climbers = set(_split(CLIMBERS))
    walkers = [
        Word(name, climbed, frozenset({"climbs"} if name in climbers else ()))
        for name in dict.fromkeys(_split(WALKERS) + _split(CLIMBERS))
    ]
    return walkers + [Word(name, flew, frozenset({"climbs"})) for name in _split(FLYERS)]


def _thieves() -> list[Word]:
    bird = {"fled": "flew away with it", "home": "nest"}
    other = {"fled": "ran away with it", "home": "den"}
    return [Word(name, bird, frozenset({"bird"})) for name in _split(BIRD_THIEVES)] + [
        Word(name, other, frozenset({"other"})) for name in _split(OTHER_THIEVES)
    ]


TROUBLES = [
    Word("cold", {"help": "wrapped the little one in"}, frozenset({"warm"})),
    Word("freezing", {"help": "warmed the little one with"}, frozenset({"warm"})),
    Word("thirsty", {"help": "brought fresh water in"}, frozenset({"water"})),
    Word("dusty", {"help": "brought water for a wash in"}, frozenset({"water"})),
    Word("lonely", {"help": "played a merry tune on"}, frozenset({"music"})),
    Word("restless", {"help": "played a slow lullaby on"}, frozenset({"music"})),
    Word("tired", {"help": "pulled the little one home in"}, frozenset({"ride"})),
    Word("lame", {"help": "laid the little one gently in"}, frozenset({"ride"})),
    Word("lost", {"help": "lit the way home with"}, frozenset({"lamp"})),
    Word("hungry", {"help": "gathered fresh grass in"}, frozenset({"carry"})),
    Word("weak", {"help": "carried the little one home in"}, frozenset({"carry"})),
]
"""What can be wrong with a young animal, and how a thing that is good for it helps."""

WORDS: Mapping[str, list[Word]] = {
    "hero": (_everybody := _people()),
    "friend": _everybody,
    "trait": _plain(TRAITS),
    "setting": _plain(SETTINGS),
    "home": _plain(HOMES),
    "land": _plain(" ".join(LANDS)),
    "place": _near(0),
    "spot": _near(1),
    "dream": _plain(DREAMS),
    "family": _plain(FAMILY),
    "day": _plain(DAYS),
    "weather": [Word(name, {"sign": sign}) for name, sign in WEATHERS.items()],
    "time": [Word(name, {"later": when, "meal": meal}) for name, (when, meal) in TIMES.items()],
    "quality": _plain(QUALITIES),
    "thing": _things(),
    "sorrow": _plain(SORROWS),
    "joy": _plain(JOYS),
    "food": _plain(FOODS),
    "snack": _plain(FOODS),
    "manner": _plain(MANNERS),
    "animal": _animals(),
    "tall": _plain(TALL),
    "thief": _thieves(),
    "young": [Word(name, {"mother": mother}) for name, mother in YOUNG.items()],
    "trouble": TROUBLES,
    "storm": [Word(name, {"after": after}) for name, after in STORMS.items()],
    "shelter": _plain(SHELTERS),
    "pastime": _plain(PASTIMES),
    "fault": _plain(FAULTS),
    "junk": _plain(JUNK),
}


def _falls(storm: Word, weather: Word) -> bool:
    return storm.text != "snow" or weather.text in ("frosty", "cloudy", "cool", "foggy")


def _steals(thief: Word, thing: Word) -> bool:
    # Birds steal what shines, and nothing else.
    return ("bird" in thief.tags) == ("shiny" in thing.tags)


RULES: list[Rule] = [
    ("hero", "friend", lambda hero, friend: hero is not friend),
    ("place", "land", lambda place, land: land.text in place.tags),
    ("spot", "land", lambda spot, land: land.text in spot.tags),
    ("spot", "place", lambda spot, place: spot.tags == place.tags),
    ("storm", "weather", _falls),
    ("thief", "thing", _steals),
    ("trouble", "thing", lambda trouble, thing: trouble.tags <= thing.tags),
    ("thing", "plot", lambda thing, plot: not plot.tags or bool(plot.tags & thing.tags)),
    ("animal", "plot", lambda animal, plot: plot.text != "stuck" or "climbs" in animal.tags),
]
"""What goes with what. `plot` is bound from the start, and tags of a plot are uses or materials of
things of which one must be there."""
