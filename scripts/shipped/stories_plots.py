"""What happens in the stories: seven plots, each with what one may learn from it.

The templates are as in stories_frame.py.
"""

from __future__ import annotations

from scripts.shipped.stories_frame import COMFORT, END, GOT, OUT, SORROW, START
from scripts.shipped.stories_grammar import Step

_LOST: list[Step] = [
    (
        "But when {he} looked around, the {thing} was gone.",
        "While they were playing, the {thing} disappeared.",
        "After a while {hero} noticed that the {quality} {thing} was gone.",
    ),
    SORROW,
    COMFORT,
    (
        "They looked everywhere, but they found only {junk.a}.",
        "They searched and searched, but there was nothing but {junk.a}.",
        "First they found {junk.a}, but no {thing}.",
    ),
    (
        "Then {manner.a} {animal} {animal.came} and asked why {hero} was {sorrow}.",
        "Soon they met {manner.a} {animal}, who listened to the whole story.",
    ),
    (
        '"I saw the {thing} {spot}," said the {animal}.',
        'The {animal} said, "Look {spot}, there is something {quality}."',
    ),
    (
        "They ran there, and {spot} lay the {quality} {thing}.",
        "And really, {spot} they found the {thing}.",
    ),
]

_BROKEN: list[Step] = [
    (
        "Suddenly {hero} slipped on a wet stone, and the {thing} {thing.broke}.",
        "Then the {thing} fell to the ground and {thing.broke}.",
        "But {friend} stumbled over {junk.a}, fell on the {thing}, and it {thing.broke}.",
    ),
    (
        "{hero} held the {thing.damaged} {thing} and was very {sorrow}.",
        '"My {thing} is {thing.damaged}," cried {hero} and felt {sorrow}.',
    ),
    COMFORT,
    (
        '"Let us ask the {thing.worker}," said {friend}, and so they did.',
        "So they carried the {thing.damaged} {thing} to the {thing.worker}.",
    ),
    (
        "The {thing.worker} gave them {thing.tool} and showed them how to mend it.",
        'The {thing.worker} smiled and said, "All you need is {thing.tool}."',
    ),
    (
        "They worked until the {thing} was as good as new.",
        "With {thing.tool} they mended the {thing}, and nobody could see where it had been "
        "{thing.damaged}.",
    ),
]

_STUCK: list[Step] = [
    (
        "A sudden gust took the {thing} and carried it to the top of a {tall}.",
        "Then the wind lifted the {quality} {thing} up to the top of a {tall}.",
    ),
    (
        "{hero} jumped as high as {he} could, but the {tall} was too high.",
        "{hero} threw a stick at the {tall}, but the {thing} did not move.",
    ),
    SORROW,
    COMFORT,
    (
        "Just then {manner.a} {animal} {animal.came}.",
        'So {friend} called {manner.a} {animal} and asked, "Can you help us?"',
    ),
    (
        "The {animal} {animal.went} up the {tall} and pulled the {thing} free.",
        'The {animal} said, "Nothing is easier," and {animal.went} to the top of the {tall}.',
    ),
    (
        "A moment later the {quality} {thing} was back in the hands of {hero}.",
        "Gently it let the {thing} fall, and {hero} caught it.",
    ),
]

_TAKEN: list[Step] = [
    (
        "All at once {thief.a} took the {thing} and {thief.fled}.",
        "Suddenly {thief.a} came, looked at the {quality} {thing} and {thief.fled}.",
    ),
    SORROW,
    COMFORT,
    (
        "They followed the {thief} until they came to its {thief.home}.",
        "They ran after the {thief} and found its {thief.home} {spot}.",
    ),
    (
        '"Why did you take the {thing}?" asked {hero}.',
        '"Please give me back my {thing}," said {hero}.',
    ),
    (
        '"I am hungry," said the {thief}, "and I thought that I could trade it for {snack}."',
        'The {thief} looked down and said, "Nobody ever brings me {snack}."',
    ),
    (
        "So {hero} shared {his} lunch with the {thief}.",
        "{friend} brought something to eat to the {thief}.",
    ),
    (
        "The {thief} ate everything and gave back the {quality} {thing}.",
        '"Thank you," said the {thief} and gave the {thing} back to {hero}.',
    ),
]

_HELP: list[Step] = [
    (
        "There they heard a small voice, and {spot} they found {young.a}.",
        "Near the path they met {young.a} that was all alone.",
    ),
    (
        '"I am so {trouble}," said the {young}, and it looked {sorrow}.',
        "The {young} was {trouble} and very {sorrow}.",
    ),
    (
        '"We must help the {young}," said {friend}.',
        "{friend} asked what they could do, and {hero} had an idea.",
        '"Do not be {sorrow}," said {hero}, "my {thing} will help you."',
    ),
    (
        "So {hero} {trouble.help} the {thing}.",
        "Together they {trouble.help} the {quality} {thing}.",
    ),
    (
        "Soon the {young} was not {trouble} any more.",
        "After a while the {young} was no longer {sorrow}.",
    ),
    (
        "Then its mother came, {manner.a} {young.mother}, and thanked them both.",
        'The mother of the {young} was {manner.a} {young.mother}, and she said, "Thank you, '
        '{hero}."',
    ),
]

_STORM: list[Step] = [
    (
        "Suddenly dark clouds came, and there was {storm}.",
        "But then the sky grew black, and soon the {storm} began.",
    ),
    (
        "{hero} hid the {quality} {thing} under {his} jacket and was {sorrow}.",
        '"The {storm} will spoil my {thing}," said {hero}, who was very {sorrow}.',
    ),
    COMFORT,
    (
        "They ran as fast as they could and found {shelter}.",
        '"Look, there is {shelter}," called {friend}, and they ran inside.',
    ),
    (
        "There {manner.a} {animal} was waiting for better weather too.",
        "Inside sat {manner.a} {animal}, who made room for them.",
    ),
    (
        "Together with the {animal} they {pastime} until the {storm} was over.",
        "They {pastime}, and the {animal} listened until the {storm} stopped.",
    ),
    (
        "When they came out, they saw a {storm.after} over the {land}.",
        "Outside there was a {storm.after}, and the {thing} was still dry.",
    ),
]

_GIFT: list[Step] = [
    (
        "On {day} it would be the birthday of {his} friend {friend}.",
        "{His} best friend was {friend}, and {day} was the birthday of {friend}.",
    ),
    (
        "What {friend} wanted most was {quality.a} {thing}.",
        '"I wish I had {quality.a} {thing}," {friend} had said.',
    ),
    (
        "But {hero} had no money and was {sorrow}.",
        "{hero} could not buy one, and so {he} felt {sorrow}.",
    ),
    (
        '"Do not be {sorrow}," said {his} {family}, "you can make one."',
        '{His} {family} said, "A present that you make is the best of all."',
    ),
    (
        "So {hero} went to {place} and met the {thing.worker}, who gave {him} {thing.stuff}.",
        "The {thing.worker} had {thing.stuff} left and gave it to {hero}.",
    ),
    (
        "The first {thing} was {fault}, but {hero} did not give up.",
        "{hero} worked all day, but the first {thing} was {fault}.",
    ),
    (
        "Then {he} {thing.made} another one, and it was just right.",
        "{He} tried again and {thing.made} the finest {thing} of all.",
    ),
    (
        'Then {friend} opened the present and cried, "{quality.a^} {thing}, for me!"',
        "When {friend} saw the {quality} {thing}, there was a big hug for {hero}.",
    ),
]

MORALS: dict[str, Step] = {
    "lost": (
        "Now {hero} knew: what is gone may be found again.",
        "Now {hero} knew: with a friend you may look everywhere.",
    ),
    "broken": (
        "Now {hero} knew: what is {thing.damaged} can be as good as new.",
        "Now {hero} knew: a good friend is the best {thing.worker}.",
    ),
    "stuck": (
        "Now {hero} knew: nothing is too high for good friends.",
        "Now {hero} knew: the one who can help you may be {animal.a}.",
    ),
    "taken": (
        "Now {hero} knew: nobody should be hungry for long.",
        "Now {hero} knew: even {thief.a} can give back what it took.",
    ),
    "help": (
        "Now {hero} knew: when you help the little one, you help everybody.",
        "Now {hero} knew: {quality.a} {thing} is best when you help with it.",
    ),
    "storm": (
        "Now {hero} knew: no {storm} will be there for long.",
        "Now {hero} knew: after the dark clouds there is a {storm.after}.",
    ),
    "gift": (
        "Now {hero} knew: the best present is one that you make.",
        "Now {hero} knew: do not give up, and you will be {joy}.",
    ),
}
"""The last sentence of a story with a moral, of each plot."""

PLOTS: dict[str, tuple[str, list[Step]]] = {
    "lost": ("", [*START, GOT, *OUT, *_LOST, *END]),
    "broken": ("", [*START, GOT, *OUT, *_BROKEN, *END]),
    "stuck": ("light", [*START, GOT, *OUT, *_STUCK, *END]),
    "taken": ("", [*START, GOT, *OUT, *_TAKEN, *END]),
    "help": ("warm water music ride lamp carry", [*START, GOT, *OUT, *_HELP, *END]),
    "storm": ("", [*START, GOT, *OUT, *_STORM, *END]),
    "gift": ("", [*START, *_GIFT, *END]),
}
"""Each plot's needs and sentences. A thing must have one of the needs; without any, all will do."""
