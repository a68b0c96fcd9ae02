"""Grade-school maths as graphs: problems with an exact number of operations, solved step by step."""

from kvshift.tasks.gsm.check import Derivation, Mistake, check
from kvshift.tasks.gsm.problem import Parameter, Problem, draw_problem
from kvshift.tasks.gsm.task import GradeSchoolMaths
from kvshift.tasks.gsm.wording import prompt, solution
from kvshift.tasks.gsm.words import decode, encode

__all__ = [
    "Derivation",
    "GradeSchoolMaths",
    "Mistake",
    "Parameter",
    "Problem",
    "check",
    "decode",
    "draw_problem",
    "encode",
    "prompt",
    "solution",
]
