"""The paper in miniature: models small enough to train on a CPU, from a made-up world to the merges' test.

world.py        the made-up world: things, facts, what is harmful
pictures.py     its pictures
corpus.py       what each stage is trained on, in public formats
questions.py    held-out questions on the four axes, as suites
pretraining.py  the tokenizer, the base model and the vision tower, from nothing
stages.py       every other checkpoint, by safegraft's own trainers
experiment.py   one seed: checkpoints, sweep, decisions on dev, their test
run.py          several seeds side by side
summary.py      several seeds as one: means, intervals, domination
tables.py       that as Markdown, between marks in docs/lab.md
plots.py        that as pictures
export.py       the checkpoints that come with the package, from a seed
shipped.py      those checkpoints
checkpoints/    the same (its README.md says more)

demo.py         `python -m safegraft_trainers.lab.demo`: the lab reduced to minutes
pairings.py     what the demo merges
server.py       `safegraft serve` as a child process, and its memory
transfer.py     merges received over gRPC, and checks of what arrived
outcome.py      what the demo's models answered, in tables and words
report.py       the folder that the demo leaves

Everything runs on a CPU and downloads nothing.
"""
