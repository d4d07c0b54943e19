"""What the trainers of all methods have in common."""

from __future__ import annotations

from truthgpt_serve.training.text.trainer.course import EVAL_LOSS, Course
from truthgpt_serve.training.text.trainer.trainer import CourseTrainer

__all__ = ["EVAL_LOSS", "Course", "CourseTrainer"]
