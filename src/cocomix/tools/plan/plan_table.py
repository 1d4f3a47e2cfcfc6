"""`cocomix plan`: a plan as tables."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from cocomix.base.formats import counted, format_bytes, format_count, format_flops, format_hours
from cocomix.tools.plan.config import PlanConfig
from cocomix.tools.plan.plan import Plan, make_plan, peak_flops
from cocomix.tools.tables import rendered_text
from cocomix.training.widths import MatchedWidth


def show_plan(config: PlanConfig) -> str | dict[str, Any]:
    """The plan of a configuration, as tables or, with `json`, as a dictionary."""
    plan = make_plan(config)
    return plan.as_dict() if config.json else "\n".join([_model(plan), "", _memory(plan), "", _bill(plan)])


def _model(plan: Plan) -> str:
    student = plan.config.run.student
    table = _table("the model")
    blocks, heads = counted(student.num_layers, "block"), counted(student.num_heads, "head")
    shape = f"{student.family}, {blocks}, width {student.hidden_size}, {heads}"
    table.add_row("decoder", shape, f"mixer {student.mixer.describe()}")
    table.add_row("parameters", format_count(plan.num_parameters), f"{plan.num_parameters:,}")
    table.add_row("active parameters", format_count(plan.num_active_parameters), f"{plan.num_active_parameters:,}")
    if plan.num_learning_parameters < plan.num_parameters:
        table.add_row("learning", format_count(plan.num_learning_parameters), "the others are frozen")
    for name, flops in plan.flops.items():
        note = {
            "algorithmic": "causal attention, nothing recomputed",
            "counter": "as torch.utils.flop_counter sees the modules",
        }[name]
        table.add_row(f"training a token, {name}", format_flops(flops.training), note)
        table.add_row(f"inference a token, {name}", format_flops(flops.inference), "")
    training = plan.flops["algorithmic"].training
    if plan.cost.labels:
        along = "runs along" if plan.config.run.sae is not None else "once, before training"
        table.add_row("teacher’s labels, a token", format_flops(plan.cost.labels), along)
    if plan.cost.targets:
        table.add_row("teacher’s forward, a token", format_flops(plan.cost.targets), "runs along")
    if plan.cost.stored_targets:
        table.add_row("teacher’s draws, a token", format_flops(plan.cost.stored_targets), "once, before training")
    if plan.cost.teacher:
        table.add_row("teacher", "", plan.teacher_name)
        share = f"the teacher is {100 * plan.cost.teacher / training:.0f} % of the student"
        table.add_row("training and teacher, a token", format_flops(training + plan.cost.teacher), share)
    table.add_row(
        "cache a token", format_bytes(plan.kv_cache_bytes_per_token), f"in {plan.config.run.parallel.precision}"
    )
    if plan.equal_parameters is not None and plan.equal_flops is not None:
        table.add_row("NTP of equal parameters", *_width(plan.equal_parameters, "parameters"))
        table.add_row("NTP of equal FLOPs", *_width(plan.equal_flops, "training FLOPs a token"))
    return rendered_text(table)


def _memory(plan: Plan) -> str:
    config, memory = plan.config, plan.memory
    table = _table(f"memory of one of {config.devices} {plan.device.name}, {config.run.parallel.strategy}")
    windows = f"{plan.windows_per_pass} windows of {plan.context_length:,} a pass"
    gathered = (
        "copies in the products’ precision" if config.run.parallel.strategy == "ddp" else "FSDP’s groups in use, whole"
    )
    rows = (
        ("weights", memory.weights, "float32"),
        ("weights in use", memory.gathered, gathered),
        ("gradients", memory.gradients, "float32"),
        ("exchange of gradients", memory.exchange, ""),
        ("optimizer", memory.moments, "AdamW, two moments in float32"),
        ("activations", memory.activations, windows),
        ("activations, checkpointed", memory.activations_with_checkpointing, "every block recomputed in the backward"),
        ("temporaries", memory.temporaries, "the most of a backward"),
        ("teacher", memory.teacher, "float32"),
    )
    counted = "activations, checkpointed" if memory.is_checkpointed else "activations"
    for name, value, note in rows:
        is_other = name.startswith("activations") and name != counted
        if value:
            table.add_row(name, f"({format_bytes(value)})" if is_other else format_bytes(value), note)
    fits = "fits" if memory.total <= plan.device.memory_bytes else "does NOT fit"
    table.add_row("in all", format_bytes(memory.total), f"{fits} in {format_bytes(plan.device.memory_bytes)}")
    return rendered_text(table)


def _bill(plan: Plan) -> str:
    config, duration = plan.config, plan.duration
    table = _table(f"{format_count(plan.num_tokens)} tokens")
    peak = format_flops(peak_flops(plan.device, config.run.parallel.precision))
    table.add_row("training", format_hours(duration.hours), f"at {100 * config.utilisation:.0f} % of {peak}/s a device")
    if duration.teacher_hours:
        table.add_row("of it the teacher’s", format_hours(duration.teacher_hours), "")
    for name, hours, precision in (
        ("labels", duration.labels_hours, duration.labels_precision),
        ("draws", duration.targets_hours, duration.targets_precision),
    ):
        if hours:
            peak = format_flops(peak_flops(plan.device, precision))
            table.add_row(f"{name}, before it", format_hours(hours), f"in {precision}, of {peak}/s a device")
    has_more = duration.labels_hours or duration.targets_hours
    table.add_row("device-hours", f"{duration.device_hours:,.1f}", "of all" if has_more else "")
    for name, size in (("labels", plan.label_bytes_per_token), ("draws", plan.target_bytes_per_token)):
        if size:
            stored = format_bytes(size * plan.num_stored_tokens)
            windows = f"{format_count(plan.num_stored_tokens)} tokens of different windows"
            table.add_row(f"stored {name}", stored, f"{size} bytes a token, {windows}, before compression")
    return rendered_text(table)


def _table(title: str) -> Table:
    table = Table(title, "", "", box=None, pad_edge=False, header_style="bold")
    table.columns[1].justify = "right"
    return table


def _width(width: MatchedWidth, what: str) -> tuple[str, str]:
    return f"width {width.hidden_size}", f"{100 * width.difference:+.1f} % {what}".replace("-", "−")
