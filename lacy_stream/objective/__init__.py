"""Logits -> loss (section 3, appendix A.3). This room knows no stream, no model and no recipe, and imports no Composer.

methods          the names of methods, objectives and rankings, without torch
losses           logits -> the loss of each target, with and without <CALL>
scores           logits -> how much a model wants to call
selectors        losses and classes -> which targets become <CALL>; minibatch  the same over all ranks of a run
call_statistics  what is logged at each batch; metrics  what is measured at each evaluation

Shapes are written as a suffix of a tensor's name:

B  rows of a batch
T  positions of a row
V  entries of the vocabulary, <CALL> among them
N  targets, flattened
K  kinds of values that are gathered together
C  classes of tokens (``annotator.FactClass``)
R  ranks
"""
