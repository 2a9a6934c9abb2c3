"""Merge methods that keep or restore safety, one module a method. What is fine-tuned or adapted comes as the input.

resta.py                adds what alignment has that an unaligned model lacks
safe_lora.py            projects updates that point away from the alignment
safemerge.py            mixes in a safety-tuned model where updates point away from the alignment
safety_arithmetic.py    takes out the direction of harm
pre_post.py             the line between the model before and after fine-tuning
mergealign.py           between the domain's and the alignment's task vectors
difference_weighted.py  the aligned LLM and LVLMs, these by how far they have moved
neuron_fusion.py        keeps the neurons that vision has moved most
layer_swap.py           early layers from the LVLM, later ones from the LLM
antidote.py             zeroes the weights that harmful data needs most
safe_delta.py           accepts the update as far as safety data allows, and compensates for it
led.py                  elects what base and expert both need, and gives no element to two experts
somf.py                 keeps of the update what learned masks allow
safety_layers.py        merges the aligned model into its safety layers alone

What they have in common:
alignment.py            the subspace of alignment, and how far an update lies in it
interpolation.py        a point on the line between two tensors
dropping.py             drop and rescale
"""
