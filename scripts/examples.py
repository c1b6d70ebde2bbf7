"""Write book/recorded/examples.npz: a few examples of each task whose licence allows a book to show them.

python scripts/examples.py FOLDER        the folder of the data, as `python -m taskvec_mini.benchmarks data` makes it
"""  # noqa: E501

from __future__ import annotations

import sys
from pathlib import Path

from taskvec_mini.benchmarks.data import load_tasks, obtain, texts
from taskvec_mini.benchmarks.data.examples import Examples, example_images, write_examples

PATH = Path(__file__).resolve().parents[1] / "book" / "recorded" / "examples.npz"
COUNT = 8
LONGEST = 90  # characters of a text
SHOWN = {  # the licences under which they may be shown, with the names that these ask for
    "mnist": "CC BY-SA 3.0 (Yann LeCun, Corinna Cortes); the copy as PNG files: MIT (Sebastian Raschka)",
    "fashion_mnist": "MIT (Zalando SE)",
    "sign_digits": "Apache-2.0 (Turkey Ankara Ayrancı Anadolu High School)",
    "dbpedia14": "CC BY-SA 3.0 and GFDL (Wikipedia, DBpedia)",
    "banking77": "CC BY 4.0 (PolyAI; Casanueva et al. 2020)",
    "clinc10": "CC BY 3.0 (Clinc; Larson et al. 2019)",
}


def main(folder: Path) -> None:
    """Choose the examples, images by class and texts by class and length, and write them."""
    offers = obtain.offers()
    examples: dict[str, Examples] = {}
    for name, licence in SHOWN.items():
        offer = offers[name]
        source = f"github.com/{offer.repository} at {offer.commit}"
        if "text" in offer.suites:
            train, _ = texts.read_files(name, folder)[1]
            chosen: dict[str, str] = {}
            for text, label in zip(train.texts, train.names, strict=True):
                if len(text) <= LONGEST:
                    chosen.setdefault(label, text)
            labels = sorted(chosen)
            labels = [labels[i * len(labels) // COUNT] for i in range(COUNT)]
            shown = tuple(chosen[label] for label in labels)
            examples[name] = Examples(tuple(labels), source, licence, texts=shown)
        else:
            task = load_tasks([name], suite="bundle", folder=folder)[name]
            images, words = example_images(task, count=COUNT)
            examples[name] = Examples(tuple(words), source, licence, images=images)
    withheld = {name: offer.licence for name, offer in offers.items() if name not in SHOWN}
    write_examples(PATH, examples, withheld=withheld)
    print(f"{PATH}: {PATH.stat().st_size:,} bytes; not shown: {', '.join(withheld)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
