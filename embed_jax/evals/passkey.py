"""Long documents that differ in one sentence: is it in their embeddings?

After LongEmbed (Zhu et al. 2024). Documents of a length are the same filler, each with a fact about
its own subject at its own depth. A query asks for one fact; right is the document that has it,
found by the similarity of embeddings. A model that reads only the beginning is right where facts
stand there, and else by chance: accuracy by length shows how much of a document its embeddings
hold.

Texts are made from a seed, with filler and our own facts: figures compare models with each
other, and are not LongEmbed's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from embed_jax.errors import InputError
from embed_jax.evals.retrieval import search_with
from embed_jax.evals.task import Embed, Outcome, Task, Use, mean_outcome
from embed_jax.registry import unknown
from embed_jax.retrieval.passages import split_passages

KIND = "Retrieval"
LENGTHS = "256,512,1024,2048,4096,8192,16384,32768"  # LongEmbed's, there in tokens

_FILLER = """
The road runs along the river and turns north after the bridge.
In the morning the market opens and people come from the villages around.
It rained for most of the week, so the fields were wet and soft.
A train passes twice a day, once before noon and once in the evening.
The old mill has been empty for years, but its wheel still turns.
Bread is baked early, and the smell of it fills the whole street.
Nobody knows for certain who planted the row of tall trees.
Children play near the fountain when the afternoon is warm.
The library keeps its windows open until the first cold days.
Some of the houses are painted white, others are left as they were.
Every spring the water rises a little and then goes back again.
A letter takes three days to reach the coast from here.
The clock above the door is slow, and no one has set it right.
On clear nights the lights of the next town can be seen.
They carried the chairs outside and talked until it was dark.
Wool and honey are sold on the square at the end of summer.
The path through the forest is short but steep in places.
A dog slept in front of the shop and did not look up.
The school was closed because the heating had to be repaired.
Boats are tied to the wooden posts below the stone stairs.
Most of what grows in the garden is eaten within the house.
The wind came from the west and brought the sound of bells.
Two brothers own the workshop and mend whatever is brought to them.
The map on the wall shows the valley as it was long ago.
After the harvest there is music, and the tables are put together.
The ferry waits when it sees someone hurrying down the hill.
Snow stays on the upper slopes until the middle of the year.
A new roof was laid before the season of storms began.
The newspaper comes late, and it is read by three families.
At noon the street is quiet and the shutters are closed.
""".strip().splitlines()

_FIRST = (
    "Ada Boris Carla Dmitri Elena Farid Greta Hugo Ines Jonas Kira Leon Mara Nils Olga Pavel "
    "Rosa Stefan Tilda Viktor"
)
_LAST = (
    "Almeida Brandt Castell Dvorak Eriksen Fontaine Gruber Holm Ivanov Janssen Keller Lindgren "
    "Moretti Novak Okafor"
)
_COLORS = (
    "amber black blue brown copper crimson golden green grey orange pink purple red silver "
    "violet white yellow"
)
_THINGS = (
    "box button candle chain coat compass cup key knife lamp mirror pencil ribbon ring rope "
    "scarf spoon vase"
)
_PLACES = (
    "attic barn cellar chapel corridor garage garden kitchen laundry pantry shed stable "
    "stairwell study tower"
)


@dataclasses.dataclass(frozen=True)
class PasskeyForm:
    """The form of a fact: a subject of two words, and a value of `values` or a number."""

    first: str
    second: str
    values: str
    fact: str
    question: str


FORMS: Mapping[str, PasskeyForm] = {
    "passkey": PasskeyForm(
        _FIRST,
        _LAST,
        "",
        "The pass key of {subject} is {value}. Remember it: {value} is the pass key of {subject}.",
        "What is the pass key of {subject}?",
    ),
    "needle": PasskeyForm(
        _COLORS,
        _THINGS,
        _PLACES,
        "The {subject} is kept in the {value}.",
        "In which room is the {subject} kept?",
    ),
}


def open_task(
    data: str = LENGTHS,
    split: str = "test",
    *,
    name: str = "",
    form: str = "passkey",
    documents: int = 100,
    queries: int = 50,
    seed: int = 0,
    passage_words: int = 0,
    passage_overlap: int = 0,
) -> Task:
    """Opens a task of made documents whose main score is "accuracy@1" over all lengths.

    "accuracy@1_256" and so on are those of each length.

    Args:
        data: the documents' lengths in words, separated by commas. English text has about 1.3
            tokens for each.
        split: any; there is one.
        name: the task's name, in tables and for prompts made for it.
        form: "passkey", a number that belongs to a person, or "needle", the place of a thing.
        documents: of each length.
        queries: of each length; their facts stand at depths spread evenly, the first one first, the
            last one last.
        seed: of the texts that are made.
        passage_words: search by passages of this many words, see `passage_search`; 0: each document
            by one embedding.
        passage_overlap: how many words a passage shares with the one before it.

    Raises:
        InputError: for lengths that are not numbers or too short for a fact, an unknown form, or
            impossible numbers of documents, queries or words.
    """
    numbers = [number.strip() for number in str(data).split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise InputError(f"passkey: expected lengths in words, separated by commas, found {data!r}")
    lengths = sorted(set(map(int, numbers)))
    if form not in FORMS:
        raise InputError(unknown("form", form, FORMS))
    most = len(FORMS[form].first.split()) * len(FORMS[form].second.split())
    if not 1 <= queries <= documents <= most:
        raise InputError(
            f"passkey: expected 1 to {most} documents and as many queries at most, found "
            f"{documents} and {queries}"
        )
    facts, questions = make_facts(form, documents, seed)
    longest = max(len(fact.split()) for fact in facts)
    if lengths[0] < longest:
        raise InputError(
            f"passkey: expected lengths of {longest} words or more, found {lengths[0]}"
        )
    if passage_words or passage_overlap:
        split_passages({}, passage_words, passage_overlap)  # raises for what is impossible
    questions_by_id = {str(number): question for number, question in enumerate(questions[:queries])}
    depths = [number % queries / max(queries - 1, 1) for number in range(documents)]

    def evaluate(embed: Embed) -> Outcome:
        search = search_with(
            embed,
            functools.partial(Use, name, KIND),
            similarity=embed.similarity,
            passage_words=passage_words,
            passage_overlap=passage_overlap,
        )
        right = {}
        for length in lengths:
            corpus = {
                str(n): make_document(length, fact, depths[n], seed) for n, fact in enumerate(facts)
            }
            run = search(corpus, questions_by_id, 1)
            right[f"accuracy@1_{length}"] = np.array(
                [float(query in ranking) for query, ranking in run.items()]
            )
        note = f"{documents} made documents of each length in words; not the texts of LongEmbed"
        return mean_outcome(
            "accuracy@1",
            {"accuracy@1": np.concatenate(list(right.values())), **right},
            notes=[note],
        )

    return Task(
        name,
        KIND,
        "queries",
        [(question,) for _ in lengths for question in questions_by_id.values()],
        evaluate,
    )


def make_facts(form: str, count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Makes facts about `count` different subjects, and the question that each answers.

    Args:
        form: one of FORMS.
        count: how many facts.
        seed: of subjects and values.
    """
    made, rng = FORMS[form], np.random.default_rng([seed, 1])
    subjects = [
        f"{first} {second}" for first in made.first.split() for second in made.second.split()
    ]
    drawn = [subjects[number] for number in rng.permutation(len(subjects))[:count]]
    if made.values:
        values = rng.choice(made.values.split(), size=count).tolist()
    else:
        values = (10_000 + rng.choice(90_000, size=count, replace=False)).tolist()
    facts = [
        made.fact.format(subject=subject, value=value)
        for subject, value in zip(drawn, values, strict=True)
    ]
    return facts, [made.question.format(subject=subject) for subject in drawn]


def make_document(length: int, fact: str, depth: float, seed: int = 0) -> str:
    """Makes a document of filler sentences with a fact among them.

    The last sentence of the filler is cut to the length.

    Args:
        length: how many words in all, the fact included.
        fact: a sentence.
        depth: from 0.0, the fact comes first, to 1.0, it comes last.
        seed: of the filler, which is the same for all facts of as many words.
    """
    rng = np.random.default_rng([seed, 2])
    sentences, missing = [], length - len(fact.split())
    while missing > 0:
        words = _FILLER[rng.integers(len(_FILLER))].split()[:missing]
        sentences.append(" ".join(words))
        missing -= len(words)
    place = round(depth * len(sentences))
    return " ".join([*sentences[:place], fact, *sentences[place:]])
