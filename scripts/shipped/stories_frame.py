"""The sentences that all stories share, beginning and end, and what a user may ask for.

In the templates `{he}`, `{his}`, `{him}` and `{child}` stand for the hero; a friend is always
named, so that a pronoun has one meaning.
"""

from __future__ import annotations

from scripts.shipped.stories_grammar import Step

START: list[Step] = [
    (
        "Once upon a time there was {trait.a} {child} named {hero}.",
        "There once was {trait.a} {child} whose name was {hero}.",
        "{hero} was {trait.a} {child}.",
        "This is a story about {trait.a} {child} called {hero}.",
        "Long ago there lived {trait.a} {child} by the name of {hero}.",
    ),
    (
        "{He} lived in {setting.a} {home} near the {land}.",
        "{His} home was {setting.a} {home} beside the {land}.",
        "With {his} {family} {he} lived in {setting.a} {home} not far from the {land}.",
    ),
    (
        None,
        None,
        "{He} wanted to be {dream.a} one day.",
        "Everybody knew that {he} hoped to become {dream.a}.",
        '"When I am big, I will be {dream.a}," {he} often said.',
    ),
]

GOT: Step = (
    "{His} {family} had given {him} {quality.a} {thing}.",
    "What {he} loved most was {quality.a} {thing}, a present from {his} {family}.",
    "On {his} birthday {he} got {quality.a} {thing} from {his} {family}.",
    "{He} had {quality.a} {thing} and took it everywhere.",
)
OUT: list[Step] = [
    (
        "One {weather} {time}, {hero} took the {thing} and went to {place} with {friend}.",
        "On {day}, {hero} carried the {quality} {thing} to {place}, where {friend} was waiting.",
        "One {weather} {day}, {hero} and {his} friend {friend} played with the {thing} at {place}.",
        "On {day} {time}, {hero} met {friend} at {place} and brought along the {thing}.",
    ),
    (None, None, "{weather.sign}"),
]

SORROW: Step = (
    "{hero} was very {sorrow}.",
    "{He} felt {sorrow} and began to cry.",
    '"I am so {sorrow}," said {hero}, "what will my {family} say?"',
    "{hero} sat down on the ground and looked {sorrow}.",
)
COMFORT: Step = (
    '"Do not be {sorrow}," said {friend}, "I will help you."',
    '{friend} took {his} hand and said, "Please do not be {sorrow}."',
    'But {friend} said, "Nobody should be {sorrow} for long."',
)

END: list[Step] = [
    (
        "{hero} was {joy} again.",
        "Now {hero} was no longer {sorrow} but {joy}.",
        '"Now I am {joy}," said {hero}.',
        "{hero} laughed and felt very {joy}.",
        '"You look {joy}," said {friend}, and {hero} nodded.',
    ),
    (
        None,
        "They went home together and ate {food}.",
        "At home {his} {family} was waiting with {food}.",
        "They came home just in time, and there was {food} for everybody.",
        "Later they sat by the fire, ate {food} and laughed.",
    ),
    (
        "From that day on, {hero} and {friend} were best friends.",
        "{hero} often thought of that day and of what {friend} had said.",
        "{hero} thanked {friend} and slept well that night.",
        "{His} {family} said that there was no other {child} like {hero}.",
        "And {hero} told {his} {family} the whole story from the beginning to the end.",
        "And if you go to the {land} today, you may still meet {hero} and {friend}.",
    ),
]

REQUESTS = (
    "Tell me a story.",
    "Tell me a story about {hero}.",
    "Tell me a story about {quality.a} {thing}.",
    "Tell me a story about {hero} and {quality.a} {thing}.",
    "Tell me a story about {hero}, {friend} and {quality.a} {thing}.",
    "Tell me a story about {trait.a} {child} named {hero}.",
    "Please write a story about {hero} and {friend}.",
    "Write a story about {hero} and {thing.a}.",
    "Write a short story about {trait.a} {child}.",
    "I would like a story about {thing.a}, please.",
    "Can you tell me a story about {hero} near the {land}?",
    "Tell me a story that happens at {place}.",
    "A story about {hero} and {quality.a} {thing}, please.",
    "Tell me about {hero} who wants to be {dream.a}.",
    "story about {hero} and {quality.a} {thing}",
    "Tell me a bedtime story about {friend} and {hero}.",
)
"""What a user may ask for; what it names is in the story."""

_SHORT = {"he": "hero.he", "his": "hero.his", "him": "hero.him", "child": "hero.child"}


def expand(sentence: str) -> str:
    """Returns the template with `{he}`, `{His}` and the like written as slots of the hero."""
    for short, slot in _SHORT.items():
        sentence = sentence.replace(f"{{{short}}}", f"{{{slot}}}")
        sentence = sentence.replace(f"{{{short.capitalize()}}}", f"{{{slot}^}}")
    return sentence
