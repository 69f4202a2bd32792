"""The hub's use cases in any order, with spokes that are late, forgetful and sometimes false: what always holds."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from hub.control import operate
from hub.store import audit
from shared.errors import FelloeError
from shared.lifecycle import ENDED, State
from tests.helpers.hubs import Site, hub_in_memory, order

SITES = ("geneva", "zurich")
SLOTS, PREFETCH = 1, 2
FACTS = [
    "queued",
    "running",
    "retrying",
    "succeeded",
    "failed",
    "killed",
    "expired",
    "kill_accepted",
]
REASONS = ["queue_full", "policy: no", "superseded", "equivocation", "running", ""]


class Wheel(RuleBasedStateMachine):
    """Two spokes, a few agents, and everything that can be asked, said, sent, lost and repeated."""

    agents = Bundle("agents")
    commands = Bundle("commands")

    @initialize()
    def opens(self) -> None:
        self.context = hub_in_memory()
        self.hub = self.context.__enter__()
        self.sites = {name: self.hub.site(name, slots=SLOTS, prefetch=PREFETCH) for name in SITES}
        self.acks: dict[str, tuple[int, int]] = {}
        self.gens: dict[str, int] = {}
        self.killed: dict[str, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "context"):
            self.context.__exit__(None, None, None)

    # --- what people do ---------------------------------------------------------------------------

    @rule(
        target=agents,
        priority=st.integers(1, 10),
        key=st.sampled_from([None, "a", "b"]),
        hold=st.booleans(),
    )
    def spawns(self, priority: int, key: str | None, hold: bool) -> Any:
        wanted = order(priority=priority, key=key, hold=hold, request_sha256=f"{hold:x}" * 64)
        found = [
            r.agent.id
            for r in self.hub.spawn_all([wanted, wanted])
            if not isinstance(r, FelloeError)
        ]
        return multiple(*found)

    @rule(agent=agents)
    def kills(self, agent: str) -> None:
        before = self.hub.agent(agent)
        after = self.hub.kill(agent)
        if before.state not in ENDED:
            self.killed[agent] = after.gen

    @rule(agent=agents, what=st.sampled_from([operate.release, operate.remove]))
    def lets_go(self, agent: str, what: Any) -> None:
        try:
            self.hub.operate(what, "default", agent)
        except FelloeError:
            return

    @rule(agent=agents, what=st.sampled_from([operate.requeue, operate.discard]))
    def looks_after_dead_letters(self, agent: str, what: Any) -> None:
        ((_, why_not),) = self.hub.operate(what, "default", [agent], reason="")
        if not why_not and what is operate.requeue:
            self.killed.pop(agent, None)

    @rule(name=st.sampled_from(SITES), what=st.sampled_from([operate.pause, operate.resume]))
    def wants(self, name: str, what: Any) -> None:
        self.hub.operate(what, name)

    # --- what the hub does ------------------------------------------------------------------------

    @rule()
    def places(self) -> None:
        for _ in range(3):
            self.hub.place()

    @rule(target=commands, name=st.sampled_from(SITES))
    def sends(self, name: str) -> Any:
        return multiple(*((name, command) for command in self.sites[name].commands()))

    @rule(seconds=st.sampled_from([1, 9, 31, 700]))
    def waits(self, seconds: int) -> None:
        self.hub.now += 1_000 * seconds
        self.hub.ripen()

    # --- what spokes say --------------------------------------------------------------------------

    @rule(
        sent=commands,
        kinds=st.lists(st.sampled_from(FACTS), min_size=1, max_size=4),
        times=st.integers(1, 2),
    )
    def tells(self, sent: tuple[str, Any], kinds: list[str], times: int) -> None:
        site = self.sites[sent[0]]
        batch = [site.event(kind, sent[1]) for kind in kinds]
        for _ in range(times):
            self.says(site, *batch)

    @rule(sent=commands, reason=st.sampled_from(REASONS))
    def refuses(self, sent: tuple[str, Any], reason: str) -> None:
        site = self.sites[sent[0]]
        self.says(site, site.event("refused", sent[1], reason=reason))

    @rule(sent=commands, kind=st.sampled_from([*FACTS, "refused"]))
    def lies_about_another_site(self, sent: tuple[str, Any], kind: str) -> None:
        liar = self.sites[SITES[1 - SITES.index(sent[0])]]
        self.says(liar, liar.event(kind, sent[1], reason="queue_full"))

    @rule(name=st.sampled_from(SITES), full=st.booleans())
    def beats(self, name: str, full: bool) -> None:
        self.sites[name].beat(full=full)

    @rule(name=st.sampled_from(SITES), forgets=st.booleans(), policy=st.sampled_from("01"))
    def greets(self, name: str, forgets: bool, policy: str) -> None:
        site = self.sites[name]
        if forgets:
            site.incarnation = 0
        site.hello(slots=SLOTS, prefetch=PREFETCH, policy=policy * 64)

    def says(self, site: Site, *events: Any) -> None:
        ack = site.ask(*events).header.evt_ack
        assert ack == site.seq

    # --- what always holds ------------------------------------------------------------------------

    @invariant()
    def no_spoke_has_more_than_its_credit(self) -> None:
        rows = self.hub.rows(
            "SELECT spoke, count(*) FROM placements WHERE gone_ms IS NULL GROUP BY spoke"
        )
        assert all(count <= SLOTS + PREFETCH for _, count in rows)

    @invariant()
    def a_killed_agent_is_not_placed_again(self) -> None:
        for agent, gen in self.killed.items():
            found = self.hub.agent(agent)
            assert found.gen == gen <= found.kill_gen
            assert found.state is not State.PENDING

    @invariant()
    def generations_rise_by_one_and_each_was_placed_once(self) -> None:
        for agent, gen, count in self.hub.rows(
            "SELECT a.id, a.gen, count(p.gen) FROM agents a LEFT JOIN placements p ON p.agent = a.id GROUP BY a.id"
        ):
            assert count == gen >= self.gens.get(agent, 0)
            self.gens[agent] = gen

    @invariant()
    def an_agent_at_a_spoke_has_an_open_placement_there_and_one_that_ended_or_waits_has_none(
        self,
    ) -> None:
        for state, spoke, placed_at in self.hub.rows(
            "SELECT a.state, a.spoke, p.spoke FROM agents a"
            " LEFT JOIN placements p ON p.agent = a.id AND p.gone_ms IS NULL"
        ):
            is_there = state in ("placed", "queued", "running", "retrying")
            assert placed_at == (spoke if is_there else None)

    @invariant()
    def every_open_placement_has_its_spawn_in_the_outbox_and_nothing_else_has(self) -> None:
        assert self.hub.rows(
            "SELECT spoke, agent, gen, cmd FROM placements WHERE gone_ms IS NULL ORDER BY cmd"
        ) == (
            self.hub.rows(
                "SELECT spoke, agent, gen, id FROM outbox WHERE op = 'spawn' ORDER BY id"
            )
        )

    @invariant()
    def what_is_to_be_killed_or_removed_is_open_where_it_is_asked_for(self) -> None:
        assert not self.hub.rows(
            "SELECT * FROM outbox o WHERE op IN ('kill', 'remove') AND NOT EXISTS (SELECT 1 FROM placements p"
            " WHERE p.agent = o.agent AND p.gen = o.gen AND p.spoke = o.spoke AND p.gone_ms IS NULL)"
        )

    @invariant()
    def a_kill_is_confirmed_exactly_when_everything_is_gone(self) -> None:
        for agent in self.killed:
            found = self.hub.agent(agent)
            is_open = any(placed.gone_ms is None for placed in self.hub.placements(agent))
            assert (found.kill_confirmed_ms is None) is is_open

    @invariant()
    def acknowledgements_only_rise_within_an_incarnation(self) -> None:
        for name in SITES:
            spoke = self.hub.spoke(name)
            now = (spoke.incarnation, spoke.evt_ack)
            assert now >= self.acks.get(name, (0, 0))
            self.acks[name] = now

    @invariant()
    def the_audit_holds(self) -> None:
        assert self.hub.do(audit.first_break, "hub") is None


TestWheel = Wheel.TestCase
TestWheel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
