"""The paper's theorems as models that run, and what their proofs leave open (docs/guides/theory.md).

induction_head    the map that the theorems are about, IH
attention         one head with ALiBi, with or without KV shift: every construction is made of it
one_layer         Theorem 2: KV shift equals IH exactly, under one mask
two_layer         Theorem 1: two plain layers come within a constant times e^(-p)
logits            Theorem 3: the logits of the five classes of tokens, derived
simulation        Theorem 3 against random embeddings of finite dimension
landscape         Figure 2: the loss of Theorem 3 and its gradient over (α1, β1); picture draws it
"""
