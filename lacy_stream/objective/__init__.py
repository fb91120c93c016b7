"""Logits -> loss (section 3, appendix A.3). This room knows no stream, no model and no recipe, and imports no Composer.

auxiliary_loss    what a mixture of experts adds to the loss
methods           the names of methods, objectives and rankings, without torch
losses            logits -> the loss of each target, with and without <CALL>
selectors         losses and classes -> which targets become <CALL>
batch             labels -> targets, which stand where their logits stand
scores            logits -> losses, how much a model wants to call, and which calls are its own
minibatch         the random numbers and the masks of a mini-batch, over all ranks
reference         the losses of a frozen model
call_statistics   what is logged at each batch
call_objective    all of these, step by step: the loss that trains a model to call, under any trainer
metrics           what is measured at each evaluation

The axes of a tensor are written as a suffix of its name. A tensor without a suffix may have any shape; the docstring
says which tensors share it.

B  rows of a batch of this rank: one microbatch, or all microbatches of a step
M  rows of the mini-batch, which are those of all ranks
T  positions of a row
V  entries of the vocabulary, <CALL> among them
D  width of the hidden states
N  targets, flattened
K  kinds of values that are gathered together
C  classes of tokens (``annotator.FactClass``)
R  ranks
"""
