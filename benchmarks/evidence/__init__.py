"""The evidence: does CoCoMix work, when, and at what cost. The tables of `docs/evidence*.md` come from what runs here.

A *cell* is one student: a corpus, a teacher, a size, a variant, a number of tokens and a seed. A *table* is a set of cells.
Each finished cell is a small JSON file under `benchmarks/results/evidence/`, so tables fill in run by run, here or on
another machine.

    python -m benchmarks.evidence --table main   # run the cells that have no result yet, then refresh the pages
    python -m benchmarks.evidence --cell standard_library/weak/small/recommended/1M/0 --again   # repeat one, and compare
    python -m benchmarks.evidence --page         # tables and figures from the stored results; sentences are written by hand

corpora.py   the texts                 variants.py   what is trained          run.py       one cell, from nothing to its file
inputs.py    data, teacher, labels     cells.py      names and files          tables.py    regimes, and the cells of a table
rows.py      results to numbers        scaling.py    a curve through sizes    figures.py, page.py   what the pages show
"""
