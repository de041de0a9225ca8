"""What a finished stage has to say in a few words."""

from __future__ import annotations

from typing import Any

from pipelines.quantities import quantity


def headline(result: dict[str, Any]) -> str:
    """A line for the result of a stage of any kind."""
    kind = result["kind"]
    if kind == "evaluate":
        parts = []
        if "average" in result:
            half = result["average_half_interval"]
            parts.append(f"accuracy {result['average']:.1%} +- {half:.1%}")
        domains = result["bits_per_byte"].items()
        parts += [f"{domain} {v['bits_per_byte']:.3f} bits/byte" for domain, v in domains]
        return ", ".join(parts)
    if kind == "contamination":
        found = f"{result['contaminated']} of {result['questions']} questions in training text"
        return f"{found}, {result['megabytes_per_second']:.3g} MB/s"
    if kind == "dpo":
        return f"held-out pair accuracy {result['heldout_pair_accuracy']:.2f}"
    if kind == "rlvr":
        first, last = result["reward_first_quarter"], result["reward_last_quarter"]
        silent = result["zero_variance_groups"]
        note = " (NO SIGNAL)" if result["status"] == "no signal" else ""
        return f"reward {first:.3f} to {last:.3f}, silent groups {silent:.0%}{note}"
    if kind == "analyze":
        models, rounds = len(result["dynamics"]), len(result["rounds"])
        return f"{models} models against {result['dynamics_reference']}, weights of {rounds} rounds"
    if kind == "score":
        rate = result.get("tokens_per_second")
        words = f"{quantity(result['tokens'])} tokens in {result['shards']} shards"
        return f"{words}, {quantity(rate)} tokens/s" if rate else f"{words}, all there"
    if "adopted" in result:
        return f"adopted {result['adopted']}, {quantity(result['parameters'])} parameters"
    words = f"loss {result['loss_first']:.3f} to {result['loss_last']:.3f}"
    if "tokens_per_second" in result:
        words += f", {quantity(result['tokens_per_second'])} tokens/s"
    if result.get("objective", "ntp") != "ntp":
        words = f"{result['objective']}, {words}"
    if "weight_std" in result:
        words += f", weights {result['weight_mean']:.2f} +- {result['weight_std']:.3f}"
    return words
