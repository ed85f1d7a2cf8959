"""From 32 sites on the graph is random: sums stay exact, and the bounds that choose it hold."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from secure_sites import Sum, terms

from pm1_core.errors import PrivacyError
from pm1_core.privacy.graph import COMPLETE_BELOW, colluding, neighbourhood, neighbours
from pm1_core.privacy.secure_sum import STAGES, least_survivors


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(32, 80), st.data())
def test_sums_over_random_graphs_are_exact_or_end_with_nothing(count: int, data: st.DataObject):
    """The attempt fails as the bound (c) allows, in one of a thousand, or ends in the exact sum."""
    drawn = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    agreed = terms(count, 5, 16)
    sites = list(drawn.permutation(sorted(agreed.sites)))
    lost: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for site in sites[: data.draw(st.integers(0, count - agreed.threshold))]:
        lost[STAGES[int(drawn.integers(len(STAGES)))]].append(str(site))
    round_ = Sum(agreed)
    try:
        opened = round_.run(lost)
    except PrivacyError as error:
        assert "try again" in str(error)  # noqa: PT017
    else:
        assert (opened == round_.expected()).all()
        gone = [site for stage in STAGES[:3] for site in lost[stage]]
        assert set(round_.collector.survivors) == set(agreed.sites) - set(gone)


@pytest.mark.parametrize("count", [3, 10, 31])
def test_everybody_is_everybodys_neighbour_below_32_sites(count: int):
    assert COMPLETE_BELOW == 32
    drawn = neighbourhood(count, least_survivors(count))
    assert (drawn.probability, drawn.threshold) == (1.0, least_survivors(count))
    names = [f"{i:02d}" for i in range(count)]
    graph = neighbours(names, "seed", drawn.probability)
    assert all(graph[name] == set(names) - {name} for name in names)
    # Two lists of survivors need more than 2 T - n colluding sites, and shares of a secret T.
    assert colluding(count, drawn.threshold) == 2 * drawn.threshold - count - 1 < drawn.threshold


@given(st.integers(32, 300), st.text(max_size=20))
@settings(max_examples=20, deadline=None)
def test_a_graph_has_its_density_is_symmetric_and_everybodys_alike(count: int, seed: str):
    drawn = neighbourhood(count, least_survivors(count))
    names = sorted(f"{i:03d}" for i in range(count))
    graph = neighbours(names, seed, drawn.probability)
    assert graph == neighbours(names, seed, drawn.probability)
    assert all(one in graph[other] and one != other for one in names for other in graph[one])
    pairs = count * (count - 1) / 2
    found = sum(map(len, graph.values())) / 2
    p = drawn.probability
    assert abs(found - p * pairs) < 6 * math.sqrt(pairs * p * (1 - p))
    assert graph != neighbours(names, seed + "x", drawn.probability)


def test_the_graph_gets_sparser_as_there_are_more_sites():
    densities = [neighbourhood(n, least_survivors(n)).probability for n in (32, 64, 128, 256, 512, 1024)]
    assert all(later < earlier < 1 for earlier, later in pairwise(densities))


@pytest.mark.parametrize("count", [32, 50, 80, 200])
def test_neither_colluders_nor_lost_sites_reach_a_threshold(count: int):
    least = least_survivors(count)
    drawn = neighbourhood(count, least)
    opens = binom.sf(drawn.threshold - 1, math.floor(count / 5), drawn.probability)
    assert count * opens < 2.0**-80
    fails = binom.cdf(drawn.threshold - 2, least - 1, drawn.probability)
    assert count * fails < 2.0**-10


def _components(graph: dict[str, frozenset[str]], left: set[str]) -> int:
    found = 0
    rest = set(left)
    while rest:
        found += 1
        reached = {rest.pop()}
        while reached:
            new = graph[reached.pop()] & rest
            rest -= new
            reached |= new
    return found


@pytest.mark.parametrize("count", [32, 60])
def test_honest_survivors_are_connected_or_refuse_when_the_coordinator_picks_who_is_lost(count: int):
    """A greedy coordinator cuts off the site with the fewest honest neighbours: refused, or not managed."""
    least = least_survivors(count)
    drawn = neighbourhood(count, least)
    names = [f"{i:02d}" for i in range(count)]
    sparse = 0
    for trial in range(100):
        graph = neighbours(names, str(trial), drawn.probability)
        thin = neighbours(names, str(trial), 0.2)
        honest = set(names[count // 5 :])
        for edges, least_shares in ((graph, drawn.threshold), (thin, 2)):
            victim = min(honest, key=lambda name: len(edges[name] & honest))
            cut = sorted(edges[victim] & honest)[: count - least]
            alive = set(names) - set(cut)
            signed = all(len(edges[name] & alive) + 1 >= least_shares for name in alive)
            apart = signed and _components(edges, honest - set(cut)) > 1
            if edges is graph:
                assert not apart
            else:
                sparse += apart
    # The same coordinator cuts off sites in a graph that was not chosen by the bound.
    assert sparse > 50


def test_no_list_is_signed_on_which_one_survivor_could_be_left_out_of_the_sum():
    """The coordinator calls lost as many of one site's neighbours as it may: coordinator and sites both stop."""
    agreed = terms(60, 1, 16)
    may_be_lost = 60 - agreed.threshold
    while True:
        # Graphs follow from fresh keys: one in a few has a site with so few neighbours.
        round_ = Sum(agreed).until("share")
        graph = round_.collector._require_roll().graph
        victim = min(graph, key=lambda site: len(graph[site]))
        if len(graph[victim]) - may_be_lost + 1 < agreed.neighbourhood.threshold:
            break
    lost = sorted(graph[victim])[:may_be_lost]
    round_.until("input")
    with pytest.raises(PrivacyError, match=f"hold shares of '{victim}'"):
        round_.step(lost)
    receipts = {site: json.loads(said)["signature"] for site, said in round_.answers["input"].items()}
    request = json.dumps({"survivors": receipts}).encode()
    with pytest.raises(PrivacyError, match=f"hold shares of '{victim}'"):
        round_.members[victim].agree(request)
