"""How fast a running Florette is, beside a bare relay and nginx; see README.md.

Reading order: answer -> fake_vllm, load -> relay, nginx -> targets -> streams -> parser, memory -> report
-> run.
"""
