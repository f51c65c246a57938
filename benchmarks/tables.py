"""The tables of `benchmarks/gam.py`: what its rows say, for the screen or for the README."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

from blocks import GATES, KNOWN, Setting, missing
from turns import Peaks

from ablation.console import out, print_frame

Row = dict[str, Any]
STAGES = ("ResNet-18 ImageNet", "ResNet-18 CIFAR", "quick")  # those that means are taken over


def frame(rows: Sequence[Row]) -> Any:
    """As pandas has it."""
    import pandas as pd  # late: the networks' processes import this file too

    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Tables:
    """Prints them."""

    markdown: bool

    def blocks(self, rows: Sequence[Row], setting: Setting) -> None:
        """A table for each subject that has its own, then one for all, over the stages of ResNet-18."""
        how = f"{setting.name}{' by autocast' * setting.amp}, {setting.device}"
        rows = [row for row in rows if (row["part"], row["dtype"]) == ("blocks", setting.name)]
        done = [row for row in rows if not row["failed"]]
        for subject in [name for name, one in KNOWN.items() if one.table]:
            base = KNOWN[subject].bases[0]
            some = [_texts(done, row, base) for row in _rows(done, subject, "training", base)]
            if some:
                self._print(f"{subject} against {base}, {how}", some)
                self._mean(done, subject, base)
        if gates := [_gate(done, row) for row in _rows(done, "ours ch", "training", "plain ch")]:
            self._print(f"channel gate alone, share of a copy's bandwidth, {how}", gates)
        if scale := [row for subject in KNOWN if subject not in GATES for row in _scale(done, subject)]:
            self._print(f"times as fast as plain, geometric means over the same maps, {how}", scale)
        failed = [
            {"map": row["map"], "subject": row["subject"], "failed": row["failed"]}
            for row in rows
            if row["failed"] and row["subject"] not in missing()
        ]
        if failed:
            self._print("not measured", failed)
        if setting.device == "cpu":
            self.note("on a GPU (bfloat16, channels_last, 256 images; the channel gate alone): not measured")

    def network(self, part: str, title: str, rows: Sequence[Row]) -> None:
        """A training step's, or memory's."""
        texts = []
        for row in rows:
            if row["failed"]:
                continue
            if part != "memory":
                texts.append(
                    {
                        "variant": row["subject"],
                        "s/step": f"{row['seconds']:.3g}",
                        "times as fast": f"{row['ratio']:.2f}" if "ratio" in row else "1",
                        "spread": _spread(row) if "ratio" in row else "",
                        "over no attention": f"{row['cost']:.2f}" if "cost" in row else "",
                        "peak MiB": f"{row['peak_mib']:.0f}",
                    }
                )
            else:
                texts.append(
                    {
                        "variant": row["subject"],
                        "held for backward, MiB": f"{row['held_mib']:.0f}",
                        "share": f"{row['held_ratio']:.2f}" if "held_ratio" in row else "",
                        "peak, MiB": f"{row['peak_mib']:.0f}",
                        "of plain's": f"{row['peak_ratio']:.2f}" if "peak_ratio" in row else "",
                    }
                )
        what = "memory of a step above the network's own" if part == "memory" else "a training step"
        self._print(f"{what}: {title}", texts)
        for row in rows:
            if row["failed"]:
                self.note(f"{row['subject']}: not measured: {row['failed']}")

    def footer(self, rows: Sequence[Row], peaks: Peaks, machine: Row, threads: int, kept: bool) -> None:
        """What the numbers are worth nothing without."""
        numbers = [int(row["repetitions"]) for row in rows if row.get("repetitions")]
        many = "–".join(str(number) for number in dict.fromkeys((min(numbers), max(numbers)))) if numbers else ""
        turns = f"medians of {many} interleaved repetitions; " if numbers else ""
        self.note(f"{turns}spread: least and largest ratio of a repetition; ratios above 1: faster than the base")
        self.note(
            f"peaks: matrix product {peaks.product_gflops:.0f}, convolution {peaks.convolution_gflops:.0f} GFLOP/s, "
            f"copy {peaks.copy_gb:.0f} GB/s; the allocator {'keeps memory' if kept else 'as it is'} for the blocks"
        )
        self.note(
            f"{machine['gpu'] or machine['cpu']}, {machine['isa']}, {threads} threads, torch {machine['torch']}, "
            f"{machine['date']}, commit {machine['commit']}: {machine['command']}"
        )

    def note(self, text: str) -> None:
        """A line."""
        out.print(text, markup=False, highlight=False)

    def _mean(self, rows: Sequence[Row], subject: str, base: str) -> None:
        texts = []
        for mode in ("training", "forward", "inference"):
            at = [row for row in _rows(rows, subject, mode, base) if row["network"] in STAGES]
            some = [row["ratio"] for row in at]
            if some:
                texts.append(f"{mode} {geometric_mean(some):.2f} ({min(some):.2f}–{max(some):.2f})")
        if texts:
            where = ", ".join(dict.fromkeys(row["network"] for row in at))
            self.note(f"geometric mean (least–largest) over {len(at)} maps of {where}: {', '.join(texts)}")

    def _print(self, title: str, texts: Sequence[Row]) -> None:
        columns = list(dict.fromkeys(key for row in texts for key in row))
        rows = [{key: row.get(key, "") for key in columns} for row in texts]
        if not self.markdown:
            out.print(f"\n{title}", style="bold", markup=False, highlight=False)
            print_frame(frame(rows))
            return
        lines = [columns, ["---"] * len(columns), *(list(row.values()) for row in rows)]
        self.note("\n".join([f"\n{title}\n", *(f"| {' | '.join(cells)} |" for cells in lines), ""]))


def _rows(rows: Iterable[Row], subject: str, mode: str, base: str) -> list[Row]:
    return [row for row in rows if (row["subject"], row.get("mode"), row.get("base")) == (subject, mode, base)]


def _of(rows: Iterable[Row], at: Row, subject: str, mode: str, base: str | None = None) -> Row | None:
    """The row of the same map."""
    return next(
        (
            row
            for row in rows
            if (row["map"], row["subject"], row.get("mode")) == (at["map"], subject, mode)
            and base in (None, row.get("base"))
        ),
        None,
    )


def _texts(rows: Sequence[Row], row: Row, base: str) -> Row:
    """A row of a subject's table."""
    subject = row["subject"]
    modes = {mode: _of(rows, row, subject, mode, base) for mode in ("forward", "inference")}
    backends = dict.fromkeys(one["backend"] for one in (row, *modes.values()) if one and one["backend"])
    theirs = _of(rows, row, base, "training")
    texts = {"network": row["network"], "map": row["map"], "backend": " / ".join(backends)}
    texts |= {f"{base}, ms": f"{theirs['seconds'] * 1e3:.3g}" if theirs else "", "ms": f"{row['seconds'] * 1e3:.3g}"}
    texts |= {"training": f"{row['ratio']:.2f}", "spread": _spread(row)}
    texts |= {mode: f"{one['ratio']:.2f}" if one else "" for mode, one in modes.items()}
    for other in KNOWN[subject].bases[1:]:
        if (one := _of(rows, row, subject, "training", other)) is not None:
            texts[f"to {other}"] = f"{one['ratio']:.2f}"
    if "gflops" in row:
        texts |= {"GFLOP/s": f"{row['gflops']:.0f}", "of peak": f"{row['of_peak']:.0%}"}
    texts["of copy"] = f"{row['of_copy']:.0%}"
    if row.get("error") is not None:
        texts["error"] = f"{row['error'] / row['same_error']:.1f}×" if row["same_error"] else f"{row['error']:.0e}"
    return texts


def _gate(rows: Sequence[Row], row: Row) -> Row:
    texts = {"network": row["network"], "map": row["map"], "backend": row["backend"]}
    for subject in ("ours ch", "plain ch"):
        for mode in ("forward", "backward"):
            if (one := _of(rows, row, subject, mode)) is not None:
                texts[f"{subject}, {mode}"] = f"{one['of_copy']:.0%}"
    return texts


def _scale(rows: Sequence[Row], subject: str) -> list[Row]:
    texts: Row = {"block": subject}
    for mode in ("training", "forward", "inference"):
        some = [row["ratio"] for row in _rows(rows, subject, mode, "plain") if row["network"] in STAGES]
        if some:
            texts |= {mode: f"{geometric_mean(some):.2f}"}
            if mode == "training":
                texts |= {"least and largest": f"{min(some):.2f}–{max(some):.2f}"}
    return [texts] if len(texts) > 1 else []


def _spread(row: Row) -> str:
    return f"{row['ratio_min']:.2f}–{row['ratio_max']:.2f}"
