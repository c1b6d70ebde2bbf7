"""The data sets of the suite "hub": where they are, what their repositories should hold, how large they are.

Repositories, columns and split sizes are those that the literature on merging CLIP models uses. Before
anything is fetched, the Hugging Face Hub is asked for the true sizes of the files; the megabytes here serve
overviews without a network. They come from file pages and data set cards of these repositories (DTD, GTSRB,
SVHN and most of Cars), or of public copies that hold the same images (the others). SUN397's is twice its
training files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_DIGITS = "0,1,2,3,4,5,6,7,8,9"
_EUROSAT = (
    "annual crop land,forest,brushland or shrubland,highway or road,"
    "industrial buildings or commercial buildings,pasture land,permanent crop land,"
    "residential buildings or homes or apartments,river,lake or sea"
)
_DTD = (
    "banded,blotchy,braided,bubbly,bumpy,chequered,cobwebbed,cracked,crosshatched,crystalline,dotted,fibrous,"
    "flecked,freckled,frilly,gauzy,grid,grooved,honeycombed,interlaced,knitted,lacelike,lined,marbled,matted,"
    "meshed,paisley,perforated,pitted,pleated,polka-dotted,porous,potholed,scaly,smeared,spiralled,sprinkled,"
    "stained,stratified,striped,studded,swirly,veined,waffled,woven,wrinkled,zigzagged"
)
_RESISC45 = (
    "airplane,airport,baseball diamond,basketball court,beach,bridge,chaparral,church,circular farmland,"
    "cloud,commercial area,dense residential,desert,forest,freeway,golf course,ground track field,harbor,"
    "industrial area,intersection,island,lake,meadow,medium residential,mobile home park,mountain,overpass,"
    "palace,parking lot,railway,railway station,rectangular farmland,river,roundabout,runway,sea ice,ship,"
    "snowberg,sparse residential,stadium,storage tank,tennis court,terrace,thermal power station,wetland"
)
_CIFAR100 = (
    "apple,aquarium fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,camel,"
    "can,castle,caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,cup,dinosaur,"
    "dolphin,elephant,flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,lawn mower,leopard,lion,"
    "lizard,lobster,man,maple tree,motorcycle,mountain,mouse,mushroom,oak tree,orange,orchid,otter,palm tree,"
    "pear,pickup truck,pine tree,plain,plate,poppy,porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,"
    "seal,shark,shrew,skunk,skyscraper,snail,snake,spider,squirrel,streetcar,sunflower,sweet pepper,table,"
    "tank,telephone,television,tiger,tractor,train,trout,tulip,turtle,wardrobe,whale,willow tree,wolf,woman,"
    "worm"
)


def _all(names: str) -> dict[int, str]:
    return dict(enumerate(names.split(",")))


@dataclass(frozen=True)
class Source:
    """How to have one data set from the Hub, and what it should be.

    Attributes:
        repository: its name on the Hub.
        sizes: the images of its parts "train" and "test".
        classes: how many there are.
        names: what a label should mean, for all labels or (Cars, GTSRB, SUN397) for some that tell the order.
        megabytes: about what the two parts are to download.
        pixels: the side of its images where all are squares of one size.
        grey: whether they have no colours.
        image, label: the columns.
        config: the configuration, where it has several.
        torchvision: whether the suite "torchvision" has the same images in the same parts.
    """

    repository: str
    sizes: tuple[int, int]
    classes: int
    names: Mapping[int, str]
    megabytes: int
    pixels: int | None = None
    grey: bool = False
    image: str = "image"
    label: str = "label"
    config: str | None = None
    torchvision: bool = field(default=False, kw_only=True)

    def side(self, size: int) -> int:
        """The side, in pixels, of its images once they are prepared: small squares are kept as they are."""
        return size if self.pixels is None else min(size, self.pixels)

    def shape(self, size: int) -> tuple[int, ...]:
        """The shape of one prepared image."""
        return (self.side(size),) * 2 + (() if self.grey else (3,))

    def bytes_of(self, images: int, size: int) -> int:
        """What so many prepared images take, in memory and on the disk.

        Example:
            >>> SOURCES["sun397"].bytes_of(19_850, 224), SOURCES["svhn"].bytes_of(1, 224)
            (2987980800, 3072)
        """
        return images * self.side(size) ** 2 * (1 if self.grey else 3)


SOURCES = {
    "sun397": Source(
        "tanganke/sun397",
        (19_850, 19_850),
        397,
        {0: "abbey", 1: "airplane cabin", 396: "youth hostel"},
        14_600,
    ),
    "cars": Source(
        "tanganke/stanford_cars",
        (8_144, 8_041),
        196,
        {0: "AM General Hummer SUV 2000", 195: "smart fortwo Convertible 2012"},
        2_000,
    ),
    "resisc45": Source("tanganke/resisc45", (18_900, 6_300), 45, _all(_RESISC45), 340),
    "eurosat": Source("tanganke/eurosat", (21_600, 2_700), 10, _all(_EUROSAT), 83, 64),
    "svhn": Source(
        "ufldl-stanford/svhn",
        (73_257, 26_032),
        10,
        _all(_DIGITS),
        183,
        32,
        config="cropped_digits",
        torchvision=True,
    ),
    "gtsrb": Source(
        "tanganke/gtsrb",
        (26_640, 12_630),
        43,
        {
            0: "red and white circle 20 kph speed limit",
            2: "red and white circle 50 kph speed limit",
            14: "stop",
        },
        333,
        torchvision=True,
    ),
    "mnist": Source("ylecun/mnist", (60_000, 10_000), 10, _all(_DIGITS), 18, 28, grey=True, torchvision=True),
    "dtd": Source("tanganke/dtd", (3_760, 1_880), 47, _all(_DTD), 630, torchvision=True),
    "cifar100": Source(
        "uoft-cs/cifar100",
        (50_000, 10_000),
        100,
        _all(_CIFAR100),
        142,
        32,
        image="img",
        label="fine_label",
    ),
}
EIGHT = tuple(SOURCES)[:8]  # the benchmarks of the literature, in its order
