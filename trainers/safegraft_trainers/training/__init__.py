"""What the trainers share; each trainer (adapt.py, safety_sft.py, ...) adds its data and its loss.

arguments.py   what all trainers can be told, and the way from a command line and a YAML file to it
base.py        a model and its processor ready to learn; which of its parameters will
parts.py       language model, projector and encoders of a vision-language model, found by name (parts.yaml)
joining.py     an LLM and a vision encoder become one vision-language model
trainer.py     what every TRL trainer is extended by
resume.py      an interrupted run goes on with the weights that it had
dry_run.py     what a run would do
provenance.py  what a run was: its data, settings, versions and outcome
card.py        the model card
run.py         trains, saves, writes the card, publishes

Knows TRL, PEFT and transformers; nothing of data formats, judges or merging.
"""
