"""Where two models differ, what that does to safety inside them, and whether the way between them is passable.

    from safegraft_trainers.analyze.run import analyze

    analysis = analyze("aligned-llm", ["adapted-lvlm"], base="base-llm", normal=..., harmful=...)
    analysis.to_dict()

layout.py         models laid over each other as a merge lays them; their values, block by block
kinds.py          which kind of weight a name stands for: attention q, mlp up, norm, ...
weights.py        how far each tensor moved; layers and kinds summed up, layers ranked
spectrum.py       spectral norm, effective and stable rank of a difference
task_vectors.py   what several models learnt from one base, and whether they agree
data.py           JSONL files of prompts and answers
subject.py        a model at work: last-token states, losses, gradients
safety_layers.py  where normal and harmful requests part, layer by layer
separation.py     how well a probe tells them apart, layer by layer
divergence.py     whether two losses pull the weights the same way
barrier.py        loss and scores along the straight line between two models
run.py            all of it in one call; the document
plots.py          the figures
report.py         the HTML page and the folder
summary.py        the same for a terminal

Each of the middle nine can be called alone. Reads models and data; writes nothing but a report's folder.
"""
