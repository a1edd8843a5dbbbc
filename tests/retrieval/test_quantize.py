"""Codes equal sentence-transformers' and plain NumPy's.

Searching them equals sorting all dot products.
"""

import dataclasses
import json
import warnings

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval import calibration as learnt
from embed_jax.retrieval.calibration import Ranges, calibrate, load_calibration, save_calibration
from embed_jax.retrieval.compressed import CompressedIndex
from embed_jax.retrieval.index import CorpusEmbeddings
from embed_jax.retrieval.quantize import (
    Compressed,
    compress,
    dequantize_embeddings,
    quantize_embeddings,
)
from embed_jax.scores import unit_length
from embed_jax.sentence import truncate

SCALAR, PACKED = ("int8", "uint8", "int4"), ("binary", "ubinary")
WITH_PQ = (*SCALAR, *PACKED, "pq4")


@pytest.fixture(scope="module")
def embeddings():
    """Returns 1,100 unit vectors around 60 centres; dimensions differ in width, one is constant."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 32)) * np.linspace(0.2, 2, 32)
    made = unit_length(centres[rng.integers(60, size=1100)] + 0.3 * rng.normal(size=(1100, 32)))
    made[:, 5] = 0.125
    return made


@pytest.fixture(scope="module")
def queries(embeddings):
    rng = np.random.default_rng(1)
    return unit_length(embeddings[:40] + 0.05 * rng.normal(size=(40, 32)))


@pytest.fixture(scope="module")
def stored(embeddings):
    """`stored(precision) -> Compressed`, calibrated on the embeddings themselves."""
    made = {}

    def stored(precision):
        if precision.startswith("pq"):
            pytest.importorskip("faiss")
        if precision not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[precision] = compress(embeddings, precision, calibrate(embeddings, precision))
        return made[precision]

    return stored


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_equals_sentence_transformers(embeddings, precision):
    reference = pytest.importorskip("sentence_transformers.util.quantization").quantize_embeddings
    sample, others = embeddings[:200], 1.5 * embeddings[200:]  # many beyond the sample's ranges
    calibration = calibrate(sample, precision)
    result = quantize_embeddings(others, precision, calibration)
    options = {"calibration_embeddings": sample} if calibration else {}
    expected = reference(others, precision, **options)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)
    if calibration:
        ranges = np.stack([calibration.low, calibration.high])
        np.testing.assert_array_equal(result, reference(others, precision, ranges=ranges))


@pytest.mark.parametrize("precision", SCALAR)
def test_an_error_is_at_most_half_a_bin_within_the_ranges(embeddings, stored, precision):
    compressed = stored(precision)
    low, step = compressed.calibration.low, compressed.calibration.step
    top = low + 2**compressed.calibration.bits * step
    inside = np.clip(embeddings, low, top)
    decoded = dequantize_embeddings(compressed.codes, precision, compressed.calibration)
    assert (np.abs(decoded - inside) <= step / 2 + 1e-6).all()
    assert np.median(np.abs(decoded - inside) / np.where(step, step, 1)) > 0.2, (
        "nor is it much finer"
    )
    np.testing.assert_array_equal(decoded[:, 5], np.float32(0.125))


@pytest.mark.parametrize("precision", SCALAR)
def test_what_lies_outside_the_ranges_goes_to_the_nearest_bin(precision):
    calibration = Ranges(
        np.full(2, -1, np.float32), np.full(2, 1, np.float32), 4 if precision == "int4" else 8, 100
    )
    outside = np.array([[-300.0, 300.0], [-1.001, 1.2]], np.float32)
    decoded = dequantize_embeddings(
        quantize_embeddings(outside, precision, calibration), precision, calibration
    )
    assert (decoded[:, 0] < -0.9).all() and (decoded[:, 1] >= 1).all()


def test_int4_bins_have_the_least_error_of_equal_bins(monkeypatch):
    """For normal values the error is 0.01154 of the variance (Max 1960)."""
    values = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)

    def error(tail):
        monkeypatch.setattr(learnt, "TAIL", tail)
        calibration = calibrate(values, "int4")
        return np.mean(
            (
                dequantize_embeddings(
                    quantize_embeddings(values, "int4", calibration), "int4", calibration
                )
                - values
            )
            ** 2
        )

    ours = error(learnt.TAIL)
    assert ours == pytest.approx(0.01154, rel=0.02)
    assert ours < min(error(0), error(0.0005), error(0.015))


def test_int4_puts_two_dimensions_in_a_byte_as_faiss_does(embeddings, stored):
    faiss = pytest.importorskip("faiss")
    compressed = stored("int4")
    low, high = compressed.calibration.low, compressed.calibration.high
    quantizer = faiss.ScalarQuantizer(32, faiss.ScalarQuantizer.QT_4bit)
    faiss.copy_array_to_vector(np.concatenate([low, high - low]), quantizer.trained)
    np.testing.assert_allclose(
        quantizer.decode(compressed.codes), compressed.rows(np.arange(1100)), atol=1e-6
    )
    assert (
        quantizer.compute_codes(embeddings) == compressed.codes
    ).mean() > 0.999  # roundings at a bin's edge


@pytest.mark.parametrize(
    ("precision", "size"), [("int8", 32), ("int4", 16), ("binary", 4), ("pq4", 4), ("float32", 128)]
)
def test_bytes_and_dimensions(embeddings, stored, precision, size):
    compressed = stored(precision)
    assert (compressed.bytes_per_vector, compressed.dim, len(compressed)) == (size, 32, 1100)
    assert compressed.codes.nbytes == 1100 * size
    assert compressed.rows(np.arange(3)).shape == (3, 32)


def test_product_quantiser_takes_the_nearest_centre_of_each_part(embeddings, stored):
    compressed = stored("pq4")
    centres = compressed.calibration.centres
    for part in range(4):
        values = embeddings[:, 8 * part : 8 * part + 8]
        distances = np.linalg.norm(values[:, None] - centres[part], axis=2)
        chosen = np.take_along_axis(distances, compressed.codes[:, part, None].astype(int), axis=1)
        np.testing.assert_allclose(chosen[:, 0], distances.min(axis=1), atol=1e-5)


def best(scores, k):
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.mark.parametrize("precision", ["float32", *WITH_PQ])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_search_equals_sorting_all_dot_products(queries, stored, precision, asymmetric):
    pytest.importorskip("faiss")
    compressed = stored(precision)
    documents = compressed.rows(np.arange(1100))
    compared = (
        queries
        if asymmetric
        else compress(queries, precision, compressed.calibration).rows(np.arange(40))
    )
    index = CompressedIndex(compressed)
    scores, rows = index.search(queries, 7, asymmetric=asymmetric)
    every = compared @ documents.T
    np.testing.assert_allclose(scores, best(every, 7)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(every, rows, axis=1), scores, rtol=1e-4, atol=1e-5
    )
    assert all(len(set(result)) == 7 for result in rows.tolist())
    np.testing.assert_allclose(index.rows(rows[0]), documents[rows[0]], atol=1e-6)


@pytest.mark.parametrize("precision", WITH_PQ)
def test_rescoring_all_candidates_is_the_search_it_rescores_with(
    embeddings, queries, stored, precision
):
    pytest.importorskip("faiss")
    index = CompressedIndex(stored(precision))
    by_codes = index.search(queries, 11, asymmetric=False, rescore=100)  # 1,100 candidates: all
    asymmetric = index.search(queries, 11)
    np.testing.assert_allclose(by_codes[0], asymmetric[0], rtol=1e-4, atol=1e-5)
    for originals in (CorpusEmbeddings(embeddings), Compressed(embeddings, "float32")):
        scores, rows = index.search(queries, 11, asymmetric=False, rescore=100, originals=originals)
        np.testing.assert_allclose(scores, best(queries @ embeddings.T, 11)[0], atol=1e-5)


def test_rescoring_reorders_the_candidates_and_no_others(embeddings, queries, stored):
    pytest.importorskip("faiss")
    index = CompressedIndex(stored("binary"))
    candidates = index.search(queries, 20, asymmetric=False)[1]
    scores, rows = index.search(
        queries, 5, asymmetric=False, rescore=4, originals=CorpusEmbeddings(embeddings)
    )
    for query, own, result, values in zip(queries, candidates, rows, scores, strict=True):
        exact = embeddings[own] @ query
        assert set(result) == set(own[np.argsort(-exact)[:5]])
        np.testing.assert_allclose(values, np.sort(exact)[::-1][:5], atol=1e-6)


def test_equal_scores_come_in_the_order_of_the_rows(embeddings):
    pytest.importorskip("faiss")
    twice = np.repeat(embeddings[:5], 3, axis=0)
    index = CompressedIndex(compress(twice, "binary"))
    for asymmetric in (True, False):
        scores, rows = index.search(embeddings[:5], 40, asymmetric=asymmetric)
        assert rows.shape == (5, 15), "k is cut to the number of embeddings"
        assert all(
            np.lexsort((own, -values)).tolist() == list(range(15))
            for own, values in zip(rows, scores, strict=True)
        )
        assert rows[:, :3].tolist() == [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(5)]


@pytest.mark.parametrize("precision", WITH_PQ)
def test_prefixes_of_matryoshka_embeddings(embeddings, queries, precision):
    pytest.importorskip("faiss")
    short, short_queries = truncate(embeddings, 16), truncate(queries, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compressed = compress(short, precision, calibrate(short, precision))
    assert compressed.dim == 16
    rows = CompressedIndex(compressed).search(short_queries, 10)[1]
    exact = best(short_queries @ short.T, 10)[1]
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)])
    assert shared > (0.3 if precision in (*PACKED, "pq4") else 0.7)


def test_a_file_of_codes_is_searched_as_it_is(queries, stored, tmp_path):
    pytest.importorskip("faiss")
    compressed = stored("int8")
    np.save(tmp_path / "codes.npy", compressed.codes)
    opened = dataclasses.replace(compressed, codes=np.load(tmp_path / "codes.npy", mmap_mode="r"))
    expected, result = (
        CompressedIndex(stored_vectors).search(queries, 5)
        for stored_vectors in (compressed, opened)
    )
    np.testing.assert_array_equal(expected, result)


@pytest.mark.parametrize("precision", ["int8", "int4", "pq4"])
@pytest.mark.parametrize("name", ["c", "a.calibration", "c.json", "c.npz"])
def test_a_calibration_is_read_as_it_was_written(stored, tmp_path, precision, name):
    calibration = stored(precision).calibration
    save_calibration(calibration, tmp_path / name)
    base = name.removesuffix(".json").removesuffix(".npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{base}.json", f"{base}.npz"]
    result = load_calibration(tmp_path / f"{base}.json")
    assert type(result) is type(calibration)
    for field, value in vars(calibration).items():
        np.testing.assert_array_equal(getattr(result, field), value)
    assert json.loads((tmp_path / f"{base}.json").read_text())["dim"] == 32


def test_bad_calibrations_are_refused(stored, tmp_path):
    path = tmp_path / "c"
    with pytest.raises(InputError, match=r"c\.json: cannot be read: No such file"):
        load_calibration(path)
    save_calibration(stored("int8").calibration, path)
    content = json.loads((tmp_path / "c.json").read_text())
    good = (tmp_path / "c.npz").read_bytes()
    for changed in ({"dim": 31}, {"kind": "x"}, {"bits": None, "kind": "codebook"}):
        (tmp_path / "c.json").write_text(json.dumps(content | changed))
        with pytest.raises(InputError, match="no calibration"):
            load_calibration(path)
    (tmp_path / "c.json").write_text(json.dumps(content))
    for damaged in (good[:100], b"", b"text"):
        (tmp_path / "c.npz").write_bytes(damaged)
        with pytest.raises(InputError, match="no calibration") as error:
            load_calibration(path)
        assert "\n" not in str(error.value)


@pytest.mark.unchecked
def test_bad_input_is_refused_in_one_line(embeddings, queries, stored):
    int8, broken = stored("int8"), embeddings.copy()
    broken[7, 3] = np.nan
    bad = {
        r"unknown 'int3'; accepted are float32, int8": lambda: quantize_embeddings(
            embeddings, "int3"
        ),
        r"unknown 'pq0'": lambda: calibrate(embeddings, "pq0"),
        r"binary: expected a dimension divisible by 8, found 12": lambda: quantize_embeddings(
            embeddings[:, :12], "binary"
        ),
        r"int4: expected a dimension divisible by 2, found 31": lambda: calibrate(
            embeddings[:, :31], "int4"
        ),
        r"pq5: expected a dimension divisible by 5, found 32": lambda: calibrate(embeddings, "pq5"),
        r"float32: expected a dimension divisible by 1, found 0": lambda: quantize_embeddings(
            embeddings[:, :0], "float32"
        ),
        r"embeddings: row 7 has a number that is not finite": lambda: quantize_embeddings(
            broken, "binary"
        ),
        r"calibration: row 7 has a number that is not finite": lambda: calibrate(broken, "int8"),
        r"calibration of int8: expected at least 100 vectors, found 99": lambda: calibrate(
            embeddings[:99], "int8"
        ),
        r"calibration of pq4: expected at least 1,024 vectors, found 200": lambda: calibrate(
            embeddings[:200], "pq4"
        ),
        r"calibration for int8: expected one of int8, found None": lambda: quantize_embeddings(
            embeddings, "int8"
        ),
        r"calibration for int4: expected one of int4, found int8": lambda: quantize_embeddings(
            embeddings, "int4", int8.calibration
        ),
        r"calibration for binary: expected None, found int8": lambda: quantize_embeddings(
            embeddings, "binary", int8.calibration
        ),
        r"calibration: of 32 dimensions, the embeddings have 16": lambda: quantize_embeddings(
            embeddings[:, :16], "int8", int8.calibration
        ),
        r"expected floating-point numbers \[N, D\], found int8": lambda: quantize_embeddings(
            int8.codes, "int8", int8.calibration
        ),
        r"expected floating-point numbers \[N, D\], found float32 \[32\]": lambda: (
            quantize_embeddings(embeddings[0], "binary")
        ),
        r"codes of uint8: expected uint8 \[N, 32\], found int8": lambda: Compressed(
            int8.codes, "uint8", int8.calibration
        ),
        r"dim: expected 1 to 32": lambda: truncate(embeddings, 0),
    }
    for message, call in bad.items():
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)

    pytest.importorskip("faiss")
    index = CompressedIndex(int8)
    bad = {
        r"queries: of 16 dimensions, the compressed embeddings have 32": lambda: index.search(
            queries[:, :16], 5
        ),
        r"queries: row 7": lambda: index.search(broken, 5),
        r"originals: of 16 dimensions": lambda: index.search(
            queries, 5, rescore=4, originals=CorpusEmbeddings(embeddings[:, :16])
        ),
        r"found 0 and 0": lambda: index.search(queries, 0),
        r"found 5 and -1": lambda: index.search(queries, 5, rescore=-1),
        r"nothing to search in": lambda: CompressedIndex(compress(embeddings[:0], "binary")),
    }
    for message, call in bad.items():
        with pytest.raises(InputError, match=message):
            call()


def test_few_vectors_for_a_product_quantiser_are_said(embeddings, capfd):
    pytest.importorskip("faiss")
    with pytest.warns(
        UserWarning, match=r"pq4: 256 centres are learnt from 1,100 vectors; FAISS advises 9,984"
    ):
        calibrate(embeddings, "pq4")
    assert capfd.readouterr() == ("", ""), "said once, not by FAISS as well"


def test_without_faiss_codes_work_and_search_says_what_to_install(monkeypatch, embeddings):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    compressed = compress(embeddings, "int4", calibrate(embeddings, "int4"))
    for call in (lambda: CompressedIndex(compressed), lambda: calibrate(embeddings, "pq4")):
        with pytest.raises(InputError, match="faiss.*pip install"):
            call()
