"""The parts of `truthgpt chat`: the conversation, its commands, and the terminal."""
