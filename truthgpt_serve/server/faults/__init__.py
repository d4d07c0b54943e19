"""What a replica leaves when its process dies: the cause, and the requests that it served."""

from truthgpt_serve.server.faults.guard import ReplicaGuard

__all__ = ["ReplicaGuard"]
