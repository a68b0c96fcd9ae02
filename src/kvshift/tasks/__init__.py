"""What models learn from.

`text/` turns files into tokens. The other four make their own data, without end, and share one shape
(`task.py`), so that whatever runs one of them runs them all:

    task = Hops(seed=0)
    batch = task.batch(step, 32)              # inputs, targets, starts, groups: each (rows, length)
    scores = task.score(model(batch.inputs).argmax(-1), batch)
    held_out = task.test(step, 1700)          # never seen in training

| task | targets | `score` |
| --- | --- | --- |
| `induction.Induction` | the next token | first determined position; unambiguous and ambiguous ones |
| `ngram.NGram` | the next token | wherever the two tokens before make up a rule |
| `hops.Hops` | at the same position | where there is an answer, by number of hops |
| `gsm.GradeSchoolMaths` | the next token | results of steps; `grade` follows a whole derivation |

A batch depends on the task's settings, its seed, the step and the size, and on nothing else: an interrupted
run goes on with the data it would have seen, and two arms with one seed learn from the same. One core makes
2 to 13 million tokens a second (docs/results/tasks.md); where a small model on a GPU learns faster than that,
several processes can make the batches of different steps.
"""
