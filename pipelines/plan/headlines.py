"""A finished stage in one line, by kind; the table of kinds refers to these functions."""

from __future__ import annotations

from typing import Any

from pipelines.quantities import quantity


def training(result: dict[str, Any]) -> str:
    """First and last loss, speed, and mean and spread of the token weights if it has any."""
    if "imported" in result:
        return f"imported {result['imported']}, {quantity(result['parameters'])} parameters"
    words = f"loss {result['loss_first']:.3f} to {result['loss_last']:.3f}"
    if "tokens_per_second" in result:
        words += f", {quantity(result['tokens_per_second'])} tokens/s"
    if result.get("objective", "ntp") != "ntp":
        words = f"{result['objective']}, {words}"
    if "weight_std" in result:
        words += f", weights {result['weight_mean']:.2f} +- {result['weight_std']:.3f}"
    return words


def dpo(result: dict[str, Any]) -> str:
    return f"held-out pair accuracy {result['heldout_pair_accuracy']:.2f}"


def rlvr(result: dict[str, Any]) -> str:
    first, last = result["reward_first_quarter"], result["reward_last_quarter"]
    zero_variance = result["zero_variance_groups"]
    note = " (NO SIGNAL)" if result["status"] == "no signal" else ""
    return f"reward {first:.3f} to {last:.3f}, zero-variance groups {zero_variance:.0%}{note}"


def score(result: dict[str, Any]) -> str:
    rate = result.get("tokens_per_second")
    words = f"{quantity(result['tokens'])} tokens in {result['shards']} shards"
    return f"{words}, {quantity(rate)} tokens/s" if rate else f"{words}, all cached"


def evaluate(result: dict[str, Any]) -> str:
    parts = []
    if "average" in result:
        half = result["average_half_interval"]
        parts.append(f"accuracy {result['average']:.1%} +- {half:.1%}")
    domains = result["bits_per_byte"].items()
    parts += [f"{domain} {v['bits_per_byte']:.3f} bits/byte" for domain, v in domains]
    return ", ".join(parts)


def contamination(result: dict[str, Any]) -> str:
    words = [f"{result['contaminated']} of {result['questions']} questions found in training text"]
    if result["not_checked"]:
        words.append(f"not checked: {', '.join(result['not_checked'])}")
    return ", ".join([*words, f"{result['megabytes_per_second']:.3g} MB/s"])


def analyze(result: dict[str, Any]) -> str:
    reference, rounds = result["dynamics_reference"], len(result["rounds"])
    models = f"{len(result['dynamics'])} models compared with {reference}, " if reference else ""
    return f"{models}token weights of {rounds} {'round' if rounds == 1 else 'rounds'}"
