"""Tasks of state and of memory are the same on every machine: their first training and test items, by a checksum."""

import hashlib

import pytest

from formwright import data

CHECKSUMS = {
    "even_pairs": "3a6158396f84f4b0",
    "cycle_navigation": "afc2eaf208f6c4da",
    "stack_manipulation": "27eb052916a0b410",
    "reverse_string": "fa0665c9baba5498",
    "modular_arithmetic_brackets": "2d2687fad5d2a419",
    "solve_equation": "3fe53c1b4558a741",
    "duplicate_string": "26f89d41d0acd16d",
    "missing_duplicate": "07807228001bbdab",
    "odds_first": "15d0f790fba8ae5f",
    "binary_addition": "a124c976fb4898d4",
    "binary_multiplication": "a25ed6bc63a94ab4",
    "compute_sqrt": "19d7e216c34999b2",
    "bucket_sort": "a003a8a17fe0f856",
    "counting": "ceb6e9fa1df441f3",
    "counting(tokenisation='merged', letters=3)": "626bbe0790a82055",
    "counting(tokenisation='quoted', most=5)": "f2b369e84defa718",
    "markov(length=64)": "2778ff67c37b814e",
    "markov(order=3, symbols=3, merges=5, length=64)": "c6d8f3753ad0b46d",
    "working_memory": "4ac783f1041d0817",
    "working_memory(recall='free', alike=True, distractors=1)": "9a59ae0abfc6b702",
    "working_memory(recall='probed', delay=2)": "cc7e2acccecb8d88",
    "modular_table": "8cf847eba2e3d112",
    "modular_table(operation='/', prime=13)": "f4fcdbd286607d40",
    "facts": "43fe0f53fedf7300",
    "facts(tested='rephrase')": "03cf20180e328bb2",
}


@pytest.mark.parametrize("spec", CHECKSUMS)
def test_items_are_the_same_everywhere(spec):
    source, seen = data.open(spec), hashlib.sha256()
    for split in ("train", "test"):
        batch = source.batch(split, 0, 64)
        seen.update(batch.inputs.numpy().tobytes() + batch.targets.numpy().tobytes())
    assert seen.hexdigest()[:16] == CHECKSUMS[spec]
