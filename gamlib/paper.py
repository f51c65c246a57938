"""The published tables as data: `paper.csv` holds the 34 rows that Tables 1 to 4 of arXiv 2112.05561 print."""

from pathlib import Path

import pandas as pd


def table() -> pd.DataFrame:
    """The printed rows in the order of print.

    Columns: table, dataset, backbone, attention (none, se, bam, cbam, tam, abn, gam), variant (empty, gc, sp,
    ch, ch+sp, wmp), params_m (millions), flops_g (10^9), top1_error and top5_error in percent.
    """
    return pd.read_csv(Path(__file__).with_suffix(".csv"), keep_default_na=False)


def row(table_number: int, backbone: str, attention: str, variant: str = "") -> "pd.Series[float]":
    """One printed row.

    Raises:
        LookupError: no such row, or several.
    """
    rows = table()
    wanted = {"table": table_number, "backbone": backbone, "attention": attention, "variant": variant}
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    if len(rows) != 1:
        raise LookupError(f"{len(rows)} printed rows are {wanted}; one was asked for")
    return rows.iloc[0]
