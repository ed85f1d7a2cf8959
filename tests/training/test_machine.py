"""A site's own batch size, precision and processes: taken by task, refused where they would change a mechanism."""

from __future__ import annotations

import pytest

from pm1_core.errors import ConfigError, PrivacyError
from pm1_core.privacy.terms import RecordTerms, SiteTerms, to_order
from pm1_core.training.machine import Machine
from pm1_core.training.order import Order

LOOP = {"batch_size": 128, "precision": "float32", "epochs": 1}


def order(task: str = "fusion", **privacy: object) -> Order:
    return Order(task, task, 1, 1, 0, {"loop": LOOP}, privacy=dict(privacy))


def test_a_site_trains_with_its_own_keys_and_the_studys_others() -> None:
    machine = Machine.of("genotype:16,all:64", "bfloat16")
    assert machine.own(order()).parameters["loop"] == {**LOOP, "batch_size": 64, "precision": "bfloat16"}
    assert machine.own(order("genotype")).parameters["loop"]["batch_size"] == 16
    assert Machine.of().own(order()) == order()
    assert machine.own(Order("statistics", "statistics", 1, 1, 0)).parameters == {}


def test_under_record_level_terms_a_batch_size_is_taken_and_a_precision_refused_by_name() -> None:
    private = order(**to_order(RecordTerms(1.0)))
    assert Machine.of("8").own(private).parameters["loop"]["batch_size"] == 8
    assert Machine.of("", "bfloat16,fusion:float32").own(private) == private
    with pytest.raises(
        PrivacyError, match=r"phase 'fusion', precision: 'bfloat16' here would change the mech"
    ):
        Machine.of("", "bfloat16").own(private)


def test_a_site_trains_by_so_many_processes_as_it_says_by_task() -> None:
    machine = Machine.of(processes="genotype:4,2")
    assert (machine.together(order("genotype")), machine.together(order())) == (4, 2)
    assert machine.own(order()) == order(), "whoever trains, it is the same order"
    assert Machine.of().together(order()) == 1


def test_under_record_level_terms_several_processes_are_refused_by_name() -> None:
    private = order(**to_order(RecordTerms(1.0)))
    assert Machine.of(processes="fusion:1,4").own(private) == private
    with pytest.raises(
        PrivacyError, match=r"phase 'fusion', processes: 4 here would .* set processes=\"fusion:1"
    ):
        Machine.of(processes="4").own(private)


def test_under_site_level_terms_what_is_noised_is_the_whole_update_however_it_came_about() -> None:
    whole = order(**to_order(SiteTerms(1.0)))
    assert Machine.of("8", "bfloat16").own(whole).parameters["loop"]["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("genotype:many", ""), "site's batch_size, genotype: found 'many'; use a whole number"),
        (("", "float8"), "loop.precision: found 'float8'"),
        (
            ("", "", "fusion:0"),
            "site's processes, fusion: found '0'; use a whole number, as many as there are GPUs",
        ),
    ],
)
def test_what_is_no_size_no_precision_or_no_number_of_processes_is_refused_by_name(
    given: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Machine.of(*given)
