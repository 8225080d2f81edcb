"""Who writes cold-start traces, and which of them are kept."""

from .base import Attempt, Task, Teacher
from .endpoint import EndpointTeacher
from .policy import PolicyTeacher
from .profile import ProfileWriter
from .teach import teach

__all__ = ["Attempt", "EndpointTeacher", "PolicyTeacher", "ProfileWriter", "Task", "Teacher", "teach"]
