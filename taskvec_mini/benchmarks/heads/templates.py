"""What CLIP's text encoder is told of each task: templates in our own words, and words for class codes.

A template is a text with one `{}`, where the words for a class go. How many a data set has follows the
literature; its sentences do not. Numbers that others published with their own templates differ a little from
what these give.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from taskvec_mini import _checks
from taskvec_mini.benchmarks.data import Task
from taskvec_mini.errors import InputTypeError, UserError

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CARS = (
    "a car of the type {}",
    "{}, parked at the side of a road",
    "{}, seen from the front",
    "{}, seen from behind",
    "{}, seen from the side",
    "{} in a car advertisement",
    "a snapshot of somebody's {}",
    "this vehicle is called {}",
)
_TEXTURES = (
    "a surface that looks {}",
    "{} material, seen from nearby",
    "something {}",
    "{}, all over the picture",
    "a close view of a {} structure",
    "a detail of something {}",
    "a sample whose surface is {}",
    "the regular or irregular look of {} things",
)
_SATELLITE = (
    "{} as a satellite sees it",
    "a small square of land seen from space: {}",
    "satellite image that shows {}",
)
_FROM_ABOVE = tuple(
    f"{what} {where}"
    for where in ("seen from above", "seen from an aeroplane", "seen from a satellite")
    for what in ("{}", "land with {}", "a place with {}", "a picture of {}", "in the middle {}", "mostly {}")
)
_PLACES = ("a view of this kind of place: {}", "{}, where this picture was taken")
_SIGNS = (
    "a traffic sign: {}",
    "a road sign beside the street, {}",
    "cut out of what a driver sees: the sign {}",
)
_THINGS = (
    "{} in a small square picture",
    "a blurred little picture that shows: {}",
    "in the middle of the picture: {}",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "cars": _CARS,
    "dtd": _TEXTURES,
    "dtd10": _TEXTURES,
    "eurosat": _SATELLITE,
    "gtsrb": _SIGNS,
    "mnist": ("{}, written by hand",),
    "svhn": ("{} on a house number plate in the street",),
    "resisc45": _FROM_ABOVE,
    "rsscn7": _FROM_ABOVE,
    "sun397": _PLACES,
    "scenes15": _PLACES,
    "cifar10": _THINGS,
    "cifar100": _THINGS,
    "streetchars": ("{} on a sign in the street",),
    "fashion_mnist": ("{}, a piece of clothing, in shades of grey",),
    "sign_digits": ("a hand whose fingers show {}",),
    "digits": ("{}, written by hand, in coarse pixels",),
}

_DIGIT_WORDS = {
    spelling: f"the digit {number}"
    for number, word in enumerate(_NUMBERS)
    for spelling in (str(number), f"{number} - {word}")  # the second is torchvision's
}
_LETTER_WORDS = {chr(code): f"the letter {chr(code)}" for code in range(ord("A"), ord("Z") + 1)}
_SIGN_WORDS = {  # in the order of the classes
    "speed limit 20": "at most 20 kilometres an hour",
    "speed limit 30": "at most 30 kilometres an hour",
    "speed limit 50": "at most 50 kilometres an hour",
    "speed limit 60": "at most 60 kilometres an hour",
    "speed limit 70": "at most 70 kilometres an hour",
    "speed limit 80": "at most 80 kilometres an hour",
    "end of speed limit 80": "the limit of 80 kilometres an hour ends, a number crossed out",
    "speed limit 100": "at most 100 kilometres an hour",
    "speed limit 120": "at most 120 kilometres an hour",
    "no passing": "no overtaking, two cars side by side in a red circle",
    "no passing for trucks": "no overtaking by trucks, a truck beside a car in a red circle",
    "right of way at next intersection": "right of way at the next crossing, an upright arrow in a triangle",
    "priority road": "priority road, a yellow diamond",
    "yield": "give way, an empty triangle on its tip",
    "stop": "stop, a red octagon",
    "no vehicles": "closed to all vehicles, an empty red circle",
    "no trucks": "closed to trucks, a truck in a red circle",
    "no entry": "no entry, a white bar on a red disc",
    "general caution": "danger, an exclamation mark in a triangle",
    "dangerous curve left": "dangerous bend to the left",
    "dangerous curve right": "dangerous bend to the right",
    "double curve": "two bends in a row",
    "bumpy road": "bumpy road",
    "slippery road": "slippery road, a skidding car",
    "road narrows on the right": "the road narrows on the right side",
    "road work": "road works, a man with a shovel",
    "traffic signals": "traffic lights ahead, red, yellow and green in a triangle",
    "pedestrians": "pedestrians, a walking person in a triangle",
    "children crossing": "children crossing, two children in a triangle",
    "bicycles crossing": "bicycles crossing, a bicycle in a triangle",
    "beware of ice or snow": "ice or snow on the road, a snowflake in a triangle",
    "wild animals crossing": "wild animals crossing, a jumping deer in a triangle",
    "end of all limits": "all limits end here, a white disc crossed out",
    "turn right ahead": "turn right at the crossing, a white arrow on a blue disc",
    "turn left ahead": "turn left at the crossing, a white arrow on a blue disc",
    "ahead only": "straight on only, a white arrow on a blue disc",
    "go straight or right": "straight on or right, two white arrows on a blue disc",
    "go straight or left": "straight on or left, two white arrows on a blue disc",
    "keep right": "pass on the right, a white arrow on a blue disc",
    "keep left": "pass on the left, a white arrow on a blue disc",
    "roundabout mandatory": "roundabout, three white arrows in a ring on a blue disc",
    "end of no passing": "overtaking is allowed again, two grey cars crossed out",
    "end of no passing for trucks": "trucks may overtake again, a grey truck crossed out",
}
_EUROSAT_WORDS = {  # torchvision's names of the folders
    "AnnualCrop": "fields of annual crops",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland",
    "Highway": "a motorway or a road",
    "Industrial": "industrial buildings",
    "Pasture": "pasture",
    "PermanentCrop": "orchards or vineyards",
    "Residential": "houses",
    "River": "a river",
    "SeaLake": "a lake or the sea",
}
_WORDS = {  # where the names of the classes are codes; names that are not listed speak for themselves
    **dict.fromkeys(("mnist", "svhn", "sign_digits", "digits"), _DIGIT_WORDS),
    "streetchars": _DIGIT_WORDS | _LETTER_WORDS,
    "gtsrb": _SIGN_WORDS | {str(label): words for label, words in enumerate(_SIGN_WORDS.values())},
    "eurosat": _EUROSAT_WORDS,
}


def templates_for(task: Task, templates: Sequence[str] | None = None) -> tuple[str, ...]:
    """The templates of a task: those given, or ours by its name.

    Raises:
        ValueError: if we have none for it, none is given, or one has not exactly one `{}`.
        TypeError: if `templates` is one text rather than several.

    Example:
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> templates_for(load_tasks(["digits"], suite="digits", limit=9)["digits"])
        ('{}, written by hand, in coarse pixels',)
    """
    if templates is None:
        if task.name not in TEMPLATES:
            raise UserError(
                f"there are no templates for the task {task.name!r}, only for {', '.join(TEMPLATES)}; pass "
                "your own, such as templates=['a picture that shows {}']"
            )
        return TEMPLATES[task.name]
    if isinstance(templates, str):
        raise InputTypeError(f"templates must be several texts, got one; pass templates=[{templates!r}]")
    for template in _checks.not_empty("templates", templates):
        if template.count("{}") != 1 or len(re.findall("[{}]", template)) != 2:
            raise UserError(
                f"the template {template!r} must have one {{}}, where the class goes, and no more"
            )
    return tuple(templates)


def templates_in(suite: str, name: str) -> tuple[str, ...]:
    """The templates of a task by its name; in the suite "digits" one template serves all views.

    Raises:
        ValueError: if there are none.

    Example:
        >>> templates_in("digits", "mirrored") == templates_in("digits", "digits") == TEMPLATES["digits"]
        True
    """
    found = TEMPLATES.get("digits" if suite == "digits" else name)
    if found is None:
        raise UserError(
            f"there are no templates for the task {name!r}, so it has no zero-shot head, only "
            f"{', '.join(TEMPLATES)} have; leave it out of --tasks, or take --heads prototypes for all"
        )
    return found


def words_for(task: Task) -> list[str]:
    """The words for each class of a task: its name, written out where that is a code.

    Example:
        >>> from taskvec_mini.benchmarks.data import load_tasks
        >>> words_for(load_tasks(["digits"], suite="digits", limit=9)["digits"])[:3]
        ['the digit 0', 'the digit 1', 'the digit 2']
    """
    known = _WORDS.get(task.name, {})
    return [known.get(name, " ".join(re.split(r"[_/\s]+", name)).strip()) for name in task.class_names]
