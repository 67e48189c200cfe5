"""Bringing a real board's DRAM up from the host, as LiteX's BIOS does from a CPU.

``sequence`` has the order of things. ``injector`` issues single commands by LiteDRAM's registers, ``initialisation``
walks JEDEC's power-up sequence with them, ``levelling`` finds delays and bitslips; ``series7``, ``ultrascale`` and
``ecp5`` know the registers of one family's PHY each, behind ``phy``.
"""
