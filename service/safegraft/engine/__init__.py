"""From a recipe and headers to merged bytes: align -> plan -> execute.

anatomy.py     what a checkpoint consists of: stacks of layers, the language model, vocabulary tensors
modules.py     which part of a model a tensor belongs to, by mergekit's names
layers.py      the layers of one stack laid on those of another
align.py       for every host tensor, which tensor each input contributes
experts.py     experts that one model stores one by one and the other stacked
composed.py    a checkpoint some of whose tensors are put together from others
substituted.py a checkpoint with some of another's tensors
virtual.py     a checkpoint that shows another one differently
slices.py      a checkpoint with the layers of another one in a new order
sections.py    models that a recipe merges with each other under the same settings
assembly.py    which section makes which tensor of the result, from which layers
tokenizer.py   the result's tokenizer: one model's, or the union of all models'
embeddings.py  which row of each vocabulary tensor is whose
vocabulary.py  a checkpoint whose vocabulary tensors have such rows
token_ids.py   tokens that configs name by their row
chat_template.py  the chat template, written where transformers reads it
rows.py        for vocabulary tensors, which rows
parameters.py  what a method's parameters accept, in words
settings.py    parameters resolved for one tensor: precedence, filters, gradients
task.py        Plan, TensorTask, PlannedFile: what is to be computed
tasks.py       one task for each tensor of the host
statistics.py  what must be known of models at work
plan.py        recipe -> Plan, every problem at once, before a weight is read
identity.py    public names, the plan's digest, the manifest
layout.py      output shards: names, headers, offsets
cost.py        what a plan will cost
kernel.py      one cut of one tensor: read, cast, check, merge, check, cast
preparation.py what methods must know before their first cut: statistics, surveys
once.py        values computed once by whoever asks first
execute.py     a plan's virtual files: any byte range, several threads, bounded memory
staging.py     a folder that appears only when complete
folder.py      virtual files -> such a folder

Knows no gRPC, no Hub and no plugin by name.
"""
