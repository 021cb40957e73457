"""The agents: what the broker decided, brought about on this host.

    cli ─▶ server | client ─▶ agent ─▶ {store, reconcile, local} ─▶ desired ─▶ plan ─▶ actions, state
                                                   host ─▶ {kernel | userspace, links, nft} ─▶ actions, state

One reconcile loop: watch, observe, plan, apply, report. `plan` is pure and names only what is ours; `host`
carries out. Of the control plane only `protocol` and `client` are known here. This module stays empty of
imports, so that a command line pays only for what it uses.
"""
