"""The same actors on a modelled machine, in virtual time.

What runs is the package itself: actors, streams, core, and what compressors really give. Only time
is modelled. The machine says what each thing costs (`spec`), the plugins that a topology names are
wrapped so that they charge it (`plugins`, `offload`, `store`), CPUs are shared out by a fair
scheduler (`cpus`), and the event loop's clock goes to the next thing that happens (`loop`).
"""
