"""Asks models prompts and says how safe, how easily scared and how helpful they are.

example.py     a prompt and what is needed to score its answer
reading.py     rows and images out of files
formats/       from public formats to examples
figstep.py     images that hold a harmful request as text
suites.py      a format and a file, as the command line names them
respondents/   who answers: a model here, or one behind an OpenAI-compatible endpoint
judges/        who says whether an answer is harmful, or a refusal
scoring.py     an answer as a number between 0 and 1
grouped.py     scores that no single answer has
statistics.py  intervals
agreement.py   how far judges agree
cache.py       answers and verdicts that outlive the process
run.py         asks, judges and scores
harness.py     tasks of the lm-evaluation-harness
results.py     what came out: every answer, and the scores made of them
tables.py      what came out: tables
plots.py       what came out: pictures
model_card.py  what came out: in a model's README.md
"""
