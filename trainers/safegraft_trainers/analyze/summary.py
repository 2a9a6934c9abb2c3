"""An analysis in sentences: what a terminal shows, and what the report says first."""

from collections.abc import Iterator

from safegraft_trainers.analyze.layout import LANGUAGE_MODEL
from safegraft_trainers.analyze.run import Analysis
from safegraft_trainers.analyze.weights import Comparison, Group


def findings(analysis: Analysis) -> list[str]:
    """One sentence or two a finding, in the order of the report."""
    return [
        *(line for one in analysis.comparisons for line in _weights(one)),
        *_task_vectors(analysis),
        *_at_work(analysis),
        *_paths(analysis),
    ]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _weights(one: Comparison) -> Iterator[str]:
    change = one.overall
    if not change.elements:
        yield f"{one.model} and {one.reference} have no weights in common."
        return
    if not change.difference_square:
        yield f"{one.model} has the weights of {one.reference} unchanged ({change.elements:,} compared)."
        return
    moved = percent(change.relative)
    yield f"{one.model} moved {moved} away from {one.reference} (cosine {number(change.cosine, 5)})."
    layers = [group for group in one.ranking() if group.part == LANGUAGE_MODEL]
    kinds = sorted(
        (group for group in one.by_kind() if group.part == LANGUAGE_MODEL),
        key=lambda group: -(group.change.relative or 0),
    )
    if layers:
        most, least = layers[0], layers[-1]
        yield (
            f"{one.model}: of the language model's layers, {_layer(most)} moved most and {_layer(least)} least; "
            f"of the kinds of weight, {kinds[0].kind} moved most ({percent(kinds[0].change.relative)})."
        )
    for group in one.by_part():
        if group.part != LANGUAGE_MODEL:
            yield f"{one.model}: the {group.part} moved {percent(group.change.relative)}."


def _layer(group: Group) -> str:
    return f"layer {group.layer} ({percent(group.change.relative)})"


def _task_vectors(analysis: Analysis) -> Iterator[str]:
    vectors = analysis.task_vectors
    for pair in vectors.pairs if vectors else ():
        cosine, signs = pair.overall.cosine, pair.overall.sign_agreement
        yield (
            f"What {pair.one} and {pair.other} changed of {vectors.base if vectors else ''} has a cosine of "
            f"{number(cosine)} and equal signs in {percent(signs)}."
        )


def _at_work(analysis: Analysis) -> Iterator[str]:
    for layers in analysis.safety_layers:
        if layers.opens is None:
            yield f"{layers.model} keeps no gap between harmful and normal prompts in any layer."
        else:
            yield (
                f"{layers.model}: the gap between harmful and normal prompts opens at layer {layers.opens} and is "
                f"widest at layer {layers.widest} ({number(layers.gap[layers.widest])})."
            )
    for one in analysis.separation:
        yield (
            f"{one.model}: a probe tells harmful from normal prompts best at layer {one.best} "
            f"(AUC {number(one.auc[one.best])}; last layer {number(one.auc[-1])})."
        )
    for one in analysis.divergence:
        pull = one.overall
        yield (
            f"{one.model}: the gradients of the adaptation and the safety loss have a cosine of "
            f"{number(pull.cosine)} (their consistency: {number(pull.adaptation_consistency)} and "
            f"{number(pull.safety_consistency)})."
        )


def _paths(analysis: Analysis) -> Iterator[str]:
    for path in analysis.paths:
        for data in path.losses:
            yield (
                f"From {path.reference} to {path.model}, the {data} loss has a barrier of "
                f"{number(path.barrier(data))} nats and is lowest at t = {path.lowest(data):g}."
            )
