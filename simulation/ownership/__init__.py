"""The world of ownership: real orchestrator, agents, journals and servers; who serves, whatever happens?"""
