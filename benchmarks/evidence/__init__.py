"""The evidence: does CoCoMix work, when, and at what cost. `docs/evidence.md` is written from what runs here.

A *cell* is one student: a corpus, a teacher, a size, a variant, a number of tokens and a seed. A *table* is a set of cells.
Each finished cell is a small JSON file under `benchmarks/results/evidence/`, so tables fill in run by run, here or on
another machine, and every number and figure of the page comes from these files.

    python -m benchmarks.evidence --table main                # runs what is missing, then writes the page
    python -m benchmarks.evidence --cell standard_library/weak/small/recommended/1M/0 --again   # one anew, compared

corpora.py    the texts             variants.py   what is trained         run.py       one cell, from nothing to its file
inputs.py     data, teacher, labels cells.py      names and files         tables.py    which cells a table has
statistics.py rows from cells       scaling.py    a curve through sizes   answers.py   rows in sentences
figures.py    curves                page.py       the page, with the prose of page.md
"""
