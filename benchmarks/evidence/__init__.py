"""The evidence: does CoCoMix work, when, and at what cost? The tables of `docs/evidence*.md` come from what runs here.

A *cell* is one student: a size, a corpus, a teacher, a row of the table with its setting, a share of the size's tokens, a
learning rate and a seed. Each finished cell is a small JSON file under `benchmarks/results/evidence/`, so tables fill in run
by run, here or on another machine.

    python -m benchmarks.evidence --table rates --prose FILE...    # every row at each learning rate, one seed
    python -m benchmarks.evidence --table weights --prose FILE...  # at the best rate, other weights; then other texts' rates
    python -m benchmarks.evidence --table main --prose FILE...     # the best of both, all seeds; then refreshes the pages
    python -m benchmarks.evidence --cell nano/prose/weak/recommended_1-cosine/100/0.004/0 --again   # repeat one, and compare
    python -m benchmarks.evidence --page                           # tables and figures from the stored results

A table runs the cells that have no result yet: one a core, or one after the other on CUDA. `--size` chooses `nano` (the
default), `small` or `base`; `--corpus`, `--teacher` and `--row` a part; `--list`
shows what would run and what it costs.

sizes.py   shapes, tokens, teachers     cells.py    names and files      run.py     one cell, from nothing to its file
rows.py    what is trained              choice.py   rates and weights    jobs.py    cells on cores or a GPU
inputs.py  data, teacher, labels        tables.py   cells of a table     numbers.py, figures.py, page.py   what is shown
dictionaries.py, copying.py   what finished students are asked besides their loss (`--dictionaries`, `--copying`)
"""
