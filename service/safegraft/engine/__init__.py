"""From a recipe and headers to merged bytes: align -> plan -> execute.

align.py       for every host tensor, which tensor each input contributes
rows.py        for vocabulary tensors, which rows
settings.py    parameters resolved for one tensor: precedence, filters, gradients
task.py        Plan, TensorTask, PlannedFile: what is to be computed
plan.py        recipe -> Plan, every problem at once, before a weight is read
layout.py      output shards: names, headers, offsets
kernel.py      one cut of one tensor: read, cast, check, merge, cast
execute.py     a plan's virtual files: any byte range, several threads, bounded memory
folder.py      virtual files -> a folder that appears only when complete

Knows no gRPC, no Hub and no plugin by name.
"""
