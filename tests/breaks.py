# ruff: noqa: E501 - what is replaced is quoted as it stands, long lines and all
"""Breaks the code on purpose, once per promise, and checks that the tests that guard it turn red.

``python -m tests.breaks`` copies the tree, applies one break at a time and runs the tests that must fail; it exits 1
when one of them stays green, or when a break no longer fits the code. ``docs/guarantees.md`` names these breaks. Names
of tests may be given as words to match, as pytest's ``-k`` takes them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("killswitch", "agents", "coordinator", "config", "deploy", "docs", "tests", "pyproject.toml", "README.md")

KEEPER = "agents/gatekeeper.py"
FLAG = "killswitch/core/flag.py"
CERTIFICATE = "killswitch/core/certificate.py"
READER = "killswitch/gate/reader.py"
LINK = "killswitch/link/router_link.py"

U_REDIS = "tests/unit/test_redis_errors.py"
FORGETTING = "killswitch/forgetting.py"
U_FORGET = "tests/unit/test_forgetting.py"
SHARES = "agents/gate_shares.py"
SET = "killswitch/cluster_set.py"

U_SHARES = "tests/unit/test_gate_shares.py"
U_SET = "tests/unit/test_cluster_set.py"
TWO_STORES = "tests/cluster/test_two_stores.py"
U_KEEPER = "tests/unit/test_gatekeeper.py"
U_FLAG = "tests/unit/test_core_flag.py"
U_CERTIFICATE = "tests/unit/test_core_certificate.py"
U_GATE = "tests/unit/test_gate.py"
U_LINK = "tests/unit/test_link.py"
NODES = "tests/cluster/test_node_faults.py"
COORDINATORS = "tests/cluster/test_coordinators.py"
DEMO = "tests/cluster/test_demo.py"
STORES = "tests/conformance"
JUDGED = "tests/cluster/test_node_judgement.py"
U_NODE = "tests/unit/test_node_monitor.py"
U_CHANGE = "tests/unit/test_limits_change.py"
U_LIVE = "tests/unit/test_live_limits.py"
U_MARKS = "tests/unit/test_section_a_marks.py"
U_STOPPER = "tests/unit/test_stopper.py"
U_ROUTERS = "tests/unit/test_routers.py"
CONTROLS = "agents/risk/pretrade/controls.py"
PROCESS = "agents/risk/process_limits.py"
U_STRATEGIES = "tests/unit/test_pretrade_strategies.py"
U_GATES = "tests/unit/test_pretrade_account_gates.py"
U_STATE = "tests/unit/test_process_state.py"


@dataclass(frozen=True)
class Break:
    """One deliberate fault.

    Attributes:
        what: the fault in words, as docs/guarantees.md names it.
        path: the file that it is in.
        old: what stands there.
        new: what the break puts there.
        where: test files to run.
        tests: names of the tests that must turn red.
    """

    what: str
    path: str
    old: str
    new: str
    where: str
    tests: tuple[str, ...]


FAST_CHECK = "        if self._words[OPEN_WORD] > clock_gettime_ns(CLOCK_ID):\n            return True\n"

START_PAUSE = '        self.pause(START, NodeFinding(trigger="not_judged", level="pause", reason="the node has not been judged yet"))\n'

BREAKS = (
    # -- ONE VOICE FREEZES
    Break("a freeze asks whether somebody leads", "killswitch/cluster.py",
          "        started_ns = self.clock()\n        deadline_ns =",
          "        if self.leader() is None:\n            raise NotInitialised('nobody leads')\n"
          "        started_ns = self.clock()\n        deadline_ns =",
          f"{NODES} {COORDINATORS}",
          ("test_one_voice_freezes_and_the_proof_names_every_node",
           "test_freeze_and_release_need_no_coordinator_and_status_says_that_nobody_leads")),
    Break("causes are told apart by their id alone", FLAG,
          "union = {freeze.canonical(): freeze for", "union = {freeze.id: freeze for", U_FLAG,
          ("test_merging_commutes", "test_merging_never_loses_a_cause", "test_every_order_of_arrival_leaves_the_same_causes")),
    Break("a merge of three causes drops one", FLAG,
          "    return tuple(sorted(union.values(), key=lambda freeze: (freeze.id, freeze.canonical())))\n",
          "    kept = sorted(union.values(), key=lambda freeze: (freeze.id, freeze.canonical()))\n"
          "    return tuple(kept[: len(kept) - (len(kept) % 3 == 0)])\n", U_FLAG,
          ("test_merging_associates", "test_merging_never_loses_a_cause")),
    Break("the mildest mode wins", "killswitch/core/modes.py",
          "return max(modes, default=Mode.ACTIVE)", "return min(modes, default=Mode.ACTIVE)", U_FLAG,
          ("test_the_strictest_mode_wins_where_scopes_overlap",)),
    Break("a full flag drops the new cause", FLAG,
          "        freezes = _escalate(flag, freeze)\n", "        freezes = flag.freezes\n", U_FLAG,
          ("test_escalation_never_lets_pass_more_than_was_asked",)),
    Break("the same freeze sent again is another cause", FLAG,
          "    if any(existing.canonical() == freeze.canonical() or _folded_last(existing, freeze) for existing in flag.freezes):\n"
          "        return None\n", "    freeze = replace(freeze, id=f'{freeze.id}-{flag.epoch}')\n", U_KEEPER,
          ("test_a_lost_reply_leaves_one_freeze_and_the_voice_falls_silent",)),
    # -- BOUNDED STOP
    Break("the gate's fast check does not look at the clock", READER,
          FAST_CHECK, FAST_CHECK.replace("clock_gettime_ns(CLOCK_ID)", "0"), f"{U_GATE} {NODES} {U_KEEPER}",
          ("test_bounded_stop_when_the_agent_is_killed", "test_bounded_stop_when_the_agent_is_paused_and_woken",
           "test_bounded_stop_when_the_store_hangs", "test_bounded_stop_the_deadline_passes_by_itself",
           "test_bounded_stop_a_killed_writer_leaves_a_gate_that_runs_out",
           "test_a_store_that_does_not_answer_changes_nothing_and_the_permit_runs_out")),
    Break("the router's half of the link does not look at the page itself", LINK,
          "stop = pushed or self._look_at_the_page()", "stop = pushed", f"{U_LINK} {DEMO}",
          ("test_without_an_agent_the_gate_alone_makes_the_router_cancel",
           "test_routers_whose_agent_was_killed_stop_by_themselves")),
    Break("a permit counts from when the answer came", KEEPER,
          "deadline_ns = permit_deadline_ns(sent_ns, self._cluster.timing)",
          "deadline_ns = permit_deadline_ns(self._cluster.clock(), self._cluster.timing)", U_KEEPER,
          ("test_a_permit_counts_from_before_the_read_was_sent",)),
    Break("the sequence number of the page is not read again", READER,
          "if words[_SEQUENCE_WORD] == sequence == state.sequence:", "if True:", U_GATE,
          ("test_bounded_stop_a_change_in_the_middle_of_a_check_is_noticed",)),
    Break("a store answers a read with what it held before", "killswitch/stores/memory.py",
          "            cell = self._cells.get(key)\n",
          "            cell = self.__dict__.setdefault('_stale', {}).setdefault(key, self._cells.get(key))\n", STORES,
          ("test_a_read_sees_every_commit_that_returned_before_it_began",)),
    Break("each key of a commit has a version of its own", "killswitch/stores/memory.py",
          "            for key, value in puts.items():\n", "            for key, value in puts.items():\n"
          "                self._version += 1\n", STORES, ("test_all_puts_and_deletes_of_a_commit_have_one_version",)),
    Break("deadlines are kept on the wall clock", "killswitch/clock.py",
          'CLOCK_ID: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)', "CLOCK_ID: int = time.CLOCK_REALTIME",
          NODES, ("test_a_stepped_wall_clock_changes_no_deadline",)),
    Break("a shorter permit is promised at once", "agents/membership.py",
          "        self._outwait_longer_permits(entry)\n", "", NODES,
          ("test_a_node_that_shortens_its_permit_lets_the_longer_one_run_out_first",)),
    # -- PROOF, NOT HOPE
    Break("the agent writes no ack", "agents/stopper.py",
          "            self._cluster.store.commit({place.key: place.version}, {key: record.to_bytes()})\n",
          "            pass\n", NODES, ("test_one_voice_freezes_and_the_proof_names_every_node",)),
    Break("an ack is written before the node has its place", "agents/stopper.py",
          "        place = self._place()\n        if place is None:\n            return False\n",
          "        flag = self._cluster.read_flag()\n"
          "        place = self._place() or Place(self._cluster.keys.flag, flag.version)\n", f"{U_STOPPER} {NODES}",
          ("test_an_agent_that_waits_for_the_name_acknowledges_nothing",
           "test_no_ack_is_written_before_the_routers_of_an_earlier_run_are_known",
           "test_a_second_agent_does_not_answer_for_the_node_whose_name_it_waits_for")),
    Break("a node has its place before its routers are known", "agents/membership.py",
          "        if lease is None or not self._joined_before:\n", "        if lease is None:\n", U_STOPPER,
          ("test_a_node_that_could_not_read_its_own_report_says_nothing_yet",)),
    Break("an ack does not ask whether the lease is held", "agents/stopper.py",
          "commit({place.key: place.version}, {key:", "commit({}, {key:", U_STOPPER,
          ("test_the_ack_of_a_lease_that_is_gone_is_refused_by_the_store",)),
    Break("an ack that stood under an earlier lease is not written again", "agents/stopper.py",
          "self._written[0] == place and ", "", U_STOPPER, ("test_a_node_that_joins_again_says_again_what_it_said",)),
    Break("the expiry bound leaves the clock rate out", "killswitch/core/permit.py",
          "    return permit_ttl_ms * clock_rate_ratio\n", "    return float(permit_ttl_ms)\n", U_CERTIFICATE,
          ("test_the_expiry_bound_counts_from_the_commits_return_times_the_clock_ratio",)),
    Break("any newer ack proves", CERTIFICATE, " and wanted <= ack.freeze_ids:", ":", U_CERTIFICATE,
          ("test_an_ack_of_something_else_proves_nothing",)),
    Break("a permit counts as expired at once", CERTIFICATE,
          "    if since_commit_returned_ms >= bound_ms:\n", "    if since_commit_returned_ms >= 0:\n", U_CERTIFICATE,
          ("test_stopped_is_never_said_of_a_node_with_neither_ack_nor_expired_permit",)),
    Break("whoever has stopped is called flat", CERTIFICATE,
          "    flat = ack.complete and ack.orders_open == 0\n", "    flat = True\n", U_CERTIFICATE,
          ("test_stopped_is_not_flat",)),
    Break("acks are read after a gap of the watch alone", "killswitch/certificates.py",
          "        self._nodes, self._nodes_read_ns = nodes, now\n        # A watch that has to find another server may be later than the permits: who answers here knows the acks, too.\n        self._acks_due.set()\n",
          "        self._nodes, self._nodes_read_ns = nodes, now\n", "tests/unit/test_cluster.py",
          ("test_acks_are_read_with_the_nodes_when_the_watch_tells_nothing",)),
    Break("an older reading of an ack hides a newer one", "killswitch/certificates.py",
          "known[1] > read_since_ns:", "False:", "tests/unit/test_cluster.py",
          ("test_an_ack_that_was_read_earlier_does_not_hide_the_one_that_the_watch_told",)),
    Break("a release of which nobody knows is an error like any other", "killswitch/cluster.py",
          "            raise OutcomeUnknown(f\"{doubt}: {unknown}; {error}\") from error\n", "            raise error\n",
          f"tests/unit/test_cluster.py {U_SET} {U_FORGET}",
          ("test_a_release_that_may_be_in_says_so", "test_a_store_that_goes_away_with_its_answer_to_a_release_may_have_it",
           "test_a_lost_reply_of_a_store_that_is_gone_is_said_to_be_unknown")),
    Break("a node without a lease for an instant is lost", "coordinator/coordinator.py",
          "lost if self._lost_before is None else lost & self._lost_before", "lost", "tests/unit/test_coordinator.py",
          ("test_a_node_without_a_lease_for_an_instant_freezes_nobody",)),
    Break("a new leader waits for a second look at who is lost", "coordinator/coordinator.py",
          "lost if self._lost_before is None else lost & self._lost_before", "lost & (self._lost_before or frozenset())",
          "tests/unit/test_coordinator.py",
          ("test_a_node_that_is_lost_when_a_leader_begins_is_lost_in_its_first_round",)),
    Break("an earlier report that cannot be read is taken for none", "agents/membership.py",
          "            self._report_unreadable(f\"what the node held before is unknown: {error}\")\n", "", f"tests/unit/test_stopper.py {NODES}",
          ("test_a_node_whose_earlier_report_cannot_be_read_is_frozen_and_never_flat",
           "test_a_node_whose_earlier_report_cannot_be_read_waits_for_a_person")),
    Break("a node that holds what is unknown is called flat", "agents/stopper.py",
          "complete=answer.complete and not self._holds_what_is_unknown(view),", "complete=answer.complete,", f"tests/unit/test_stopper.py {NODES}",
          ("test_a_node_whose_earlier_report_cannot_be_read_is_frozen_and_never_flat",
           "test_a_node_whose_earlier_report_cannot_be_read_waits_for_a_person")),
    Break("a freeze that was taken ends like one that the store never took", "killswitch/cli/flag_commands.py",
          "            except NodesUnreadable as error:\n", "            except ZeroDivisionError as error:\n", "tests/unit/test_cli.py",
          ("test_freeze_whose_store_is_gone_before_its_nodes_were_read_exits_3",)),
    Break("an expired permit is called flat", CERTIFICATE,
          "node.working_orders, None, flat=False, note=note)\n    note = f\"no answer",
          "node.working_orders, None, flat=True, note=note)\n    note = f\"no answer", U_CERTIFICATE,
          ("test_an_expired_permit_proves_a_silent_node_stopped_but_not_flat",)),
    Break("a node of unknown permit time is given the default", CERTIFICATE,
          "    if node.permit_ttl_ms is None:\n",
          "    if node.permit_ttl_ms is None:\n        node = KnownNode(node.node, 2_000, node.working_orders)\n    if False:\n",
          U_CERTIFICATE, ("test_a_node_whose_permit_time_is_unknown_stays_unproven_for_ever",)),
    Break("a node without a record gets a permit", KEEPER,
          "return self._adopt(found, sent_ns, permitted=registered)", "return self._adopt(found, sent_ns, permitted=True)",
          U_KEEPER, ("test_a_node_without_a_record_gets_no_permit",)),
    Break("lost data does not make a node register again", KEEPER,
          "            # Somebody found the store without its data; this node's record may have gone with it.\n"
          "            self._registered = False", "            pass", U_KEEPER,
          ("test_a_node_whose_record_may_be_lost_with_the_store_registers_again_first",)),
    Break("a lost router's orders are forgotten", "agents/routers.py",
          "        return self.exposure.working_orders + self.orphaned_orders\n", "        return 0\n", NODES,
          ("test_a_router_that_vanishes_is_lost_and_keeps_the_cluster_from_being_flat",)),
    Break("a cancelling that failed is told as done", LINK,
          "cancelled=0, failed=1, open=1, last_sequence=None", "cancelled=0, failed=1, open=0, last_sequence=None", U_LINK,
          ("test_a_trading_program_that_fails_to_cancel_proves_nothing",)),
    Break("a restarted agent forgets its routers", "agents/membership.py",
          "            self._remember_routers()\n", "", NODES, ("test_a_restarted_agent_keeps_what_its_routers_hold",)),
    Break("a router that comes before it is remembered is taken for new", "agents/routers.py",
          "remembered if known is None else _as_if_before(remembered, known)", "remembered if known is None else known",
          f"{U_ROUTERS} {NODES}",
          ("test_it_does_not_matter_when_an_earlier_run_is_remembered",
           "test_a_run_that_has_not_asked_the_venue_leaves_the_orders_of_before_unproven",
           "test_a_router_that_is_back_before_its_agent_has_joined_holds_what_it_held")),
    Break("a goodbye overtakes the report that is being sent", LINK,
          "        with self._send_lock:\n            self._send_in_order()\n", "        self._send_in_order()\n", U_LINK,
          ("test_a_goodbye_does_not_overtake_the_last_report",)),
    Break("a router does not report again to an agent that starts anew", LINK,
          "                self._report = self._report or self._last_report\n", "                pass\n", U_LINK,
          ("test_what_was_reported_last_is_reported_to_an_agent_that_starts_anew",)),
    Break("the demo does not ask the venue what it accepted", "agents/scenarios/demo.py",
          '            result.faults.append(f"the venue accepted {between', '            str(f"the venue accepted {between',
          DEMO, ("test_the_judge_convicts_a_router_that_does_not_look_at_its_gate",)),
    # -- RELEASE IS FENCED
    Break("a release does not look at the epoch", FLAG, "    if epoch != flag.epoch:\n", "    if False:\n", U_FLAG,
          ("test_a_release_of_any_other_epoch_loses", "test_a_replayed_release_loses",
           "test_a_newer_freeze_survives_an_older_release")),
    Break("a release lifts everything", FLAG,
          "    kept = tuple(freeze for freeze in flag.freezes if freeze.id not in ids)\n", "    kept = ()\n", U_FLAG,
          ("test_a_release_lifts_exactly_what_it_names",)),
    Break("a release of what is not in force passes", FLAG, "    if missing:\n", "    if False:\n", U_FLAG,
          ("test_a_release_that_names_nothing_or_something_unknown_lifts_nothing",)),
    Break("the epoch skips a number", FLAG, "epoch + 1", "epoch + 2", U_FLAG,
          ("test_the_epoch_grows_by_exactly_one_per_change",)),
    Break("a store does not compare versions", "killswitch/stores/memory.py",
          "            self._check_expected(address, expect)\n            present", "            present", STORES,
          ("test_a_conflict_writes_nothing_and_names_the_key",)),
    Break("a leader's acts carry no fence", "coordinator/election.py",
          "            return {self._lease.key: self._lease.version}\n", "            return {}\n",
          "tests/unit/test_election.py", ("test_a_paused_leader_is_refused_by_the_store",)),
    # -- stores
    Break("a fault in a subscription ends the watch", "killswitch/stores/_reconnecting.py",
          "        except Exception as error:", "        except ZeroDivisionError as error:", "tests/unit/test_reconnecting.py",
          ("test_a_fault_of_ours_ends_a_subscription_and_not_the_watch",)),
    Break("a log that cannot be written ends the watch", "killswitch/stores/_saying.py",
          "    with contextlib.suppress(Exception):\n", "    with contextlib.suppress(ZeroDivisionError):\n",
          "tests/unit/test_reconnecting.py",
          ("test_a_log_that_cannot_be_written_ends_no_watch",
           "test_a_callback_that_fails_under_a_log_that_cannot_be_written_ends_no_watch")),
    Break("a connection that has been closed is woken", "killswitch/stores/_zookeeper_connection.py",
          "                self._ended = True\n            self._release()\n\n", "                pass\n            self._release()\n\n",
          "tests/unit/test_zookeeper_store.py",
          ("test_a_connection_that_another_thread_has_just_closed_can_be_given_up",)),
    Break("a refused token is not renewed", "killswitch/stores/_etcd_channel.py",
          "if self._tokens is None or not failures.refuses_token(error):", "if True:", "tests/unit/test_etcd_errors.py",
          ("test_a_refused_token_is_renewed_once_and_the_call_made_again",)),
    Break("a replica of Redis that takes writes is taken for a primary", "killswitch/stores/_redis_primary.py",
          'if role[0] != b"master":', "if False:", U_REDIS, ("test_a_replica_that_takes_writes_is_no_primary",)),
    Break("a write to Redis is sent again", "killswitch/stores/_redis_transport.py",
          "                if error.sent:\n", "                if error.sent and not again:\n", U_REDIS,
          ("test_a_write_without_an_answer_is_unknown_and_sent_once",)),
    Break("connections to Redis survive a failure", "killswitch/stores/_redis_transport.py",
          "            self._generation += 1\n            idle, self._idle = self._idle, []", "            idle: list[Link] = []",
          U_REDIS, ("test_connections_that_were_idle_during_a_failure_are_not_used_again",)),
    Break("a conflict that no replica confirmed is believed", "killswitch/stores/_redis_transport.py",
          "                if error.wrote:", "                if True:", U_REDIS,
          ("test_too_few_replicas_make_a_write_unknown_and_a_conflict_unavailable",)),
    Break("a lease does not look at its key", "killswitch/stores/memory.py",
          "            if lease is None or cell is None or cell.lease_id != lease_id:\n", "            if lease is None:\n",
          STORES, ("test_a_lease_whose_key_somebody_else_took_away_is_lost",)),
    # -- the node's own judgement
    Break("a sell is worth its own limit price", "agents/risk/limit_rule.py",
          "    return known if sign < 0 and known is not None and known > price else price\n", "    return price\n",
          f"{U_MARKS} tests/unit/test_section_a_runtime_risk_monitor.py",
          ("test_a_low_limit_price_does_not_make_the_exposure_of_a_sell_vanish",
           "test_the_check_is_the_rule_worked_out_in_decimals")),
    Break("the quick look at a sell takes its own price", "agents/risk/order_limits.py",
          "                    price = held.price\n", "                    pass\n", U_MARKS,
          ("test_a_low_limit_price_does_not_make_the_exposure_of_a_sell_vanish",)),
    Break("a mark is remembered and values nothing", "agents/risk/potential_book.py",
          "        if held is None and symbol not in self.working.by_symbol:\n            return False\n        self.book()\n",
          "        return False\n", U_MARKS,
          ("test_what_is_held_is_worth_the_newest_mark",
           "test_what_works_on_the_selling_side_is_worth_more_when_the_market_rises")),
    Break("the size of a sell is that of its own limit price", "agents/risk/pretrade/order_size.py",
          "        if price is None or order.sign < 0:\n", "        if price is None:\n",
          "tests/unit/test_pretrade_each_control.py",
          ("test_a_sell_is_worth_the_newest_price_however_low_its_own_is",)),
    Break("a what-if does not ask whether one more order may work", "agents/risk/order_limits.py",
          "            return self._room_refusal(symbol), verdict\n", "            return None, verdict\n",
          "tests/unit/test_pretrade_each_control.py",
          ("test_a_what_if_says_no_where_one_more_order_may_not_work",)),
    Break("the warning ladder does not look at the marks of a verdict", "agents/risk/order_limits.py",
          "        if verdict.standing_usd is None:\n", "        if True:\n", U_MARKS,
          ("test_the_ladder_warns_at_the_marks_that_the_limits_use",)),
    Break("unknown figures of exposure only reduce", "agents/risk/policy_table.py",
          "        return Restriction(Mode.FROZEN, growing_orders=False)\n",
          "        return Restriction(Mode.REDUCE_ONLY, growing_orders=False)\n", "tests/unit/test_policy_table.py",
          ("test_modes_map_to_the_clusters_words",)),
    # -- a node that is forgotten
    Break("a node is forgotten at once", FORGETTING, "    if left_ms > 0:\n", "    if left_ms > 1e9:\n", U_FORGET,
          ("test_a_node_is_not_forgotten_while_a_permit_of_it_may_be_left",)),
    Break("forgetting does not look at the lease in its commit", FORGETTING,
          'expected: dict[str, int | None] = {cluster.keys.under("live", remains.node): None}',
          "expected: dict[str, int | None] = {}", U_FORGET, ("test_a_node_that_shows_itself_meanwhile_is_not_forgotten",)),
    Break("the history does not say what was forgotten", FORGETTING, "forgotten=account, actor",
          "forgotten={'node': remains.node}, actor", U_FORGET,
          ("test_a_forgotten_node_leaves_the_books_and_its_figures_stay_on_record",)),
    Break("what was forgotten is not under the hash", "killswitch/core/history.py", 'if key != "hash"}',
          'if key not in ("hash", "forgotten")}', "tests/unit/test_core_history.py",
          ("test_any_changed_field_of_any_entry_is_found",)),
    Break("forgetting lifts the freezes", FLAG, "flag, flag.freezes, kind=FORGET", "flag, (), kind=FORGET", U_FORGET,
          ("test_forgetting_a_node_opens_no_frozen_gate",)),
    Break("a permit outlasts the lease", KEEPER, "min(deadline_ns, self._lease_until_ns)", "deadline_ns", U_KEEPER,
          ("test_no_permit_outlasts_the_lease_that_the_store_was_last_seen_to_keep",)),
    Break("a node whose lease is gone takes permits", KEEPER,
          "registered = self._registered and self._cluster.clock() < self._lease_until_ns", "registered = self._registered",
          U_KEEPER, ("test_no_permit_outlasts_the_lease_that_the_store_was_last_seen_to_keep",)),
    # -- several stores
    Break("a freeze needs every store", SET, "        if commits:\n", "        if not failures:\n", U_SET,
          ("test_one_store_is_enough_to_freeze", "test_a_store_without_a_flag_keeps_nobody_from_freezing")),
    Break("a release looks at the first store's epoch alone", SET,
          "            if flag.epoch != epoch:\n", "            if flag is flags[0] and flag.epoch != epoch:\n", U_SET,
          ("test_a_stale_epoch_of_any_store_releases_nothing",)),
    Break("one store's permit opens the gate", SHARES,
          "        return min(share._permit_deadline_ns", "        return max(share._permit_deadline_ns",
          f"{U_SHARES} {TWO_STORES}",
          ("test_one_stores_permit_opens_nothing", "test_the_page_is_open_just_when_every_store_allows_it",
           "test_a_store_that_hangs_stops_neither_the_freeze_nor_its_proof",
           "test_an_agent_that_cannot_reach_its_second_store_never_opens")),
    Break("the page shows what the last store said", SHARES,
          "        causes = merge(*(share._freezes for share in self._shares), ", "        causes = merge(self._freezes, ",
          f"{U_SHARES} {TWO_STORES}",
          ("test_a_release_in_one_store_leaves_the_others_freeze", "test_a_freeze_in_both_needs_a_release_in_both")),
    Break("a store that lets a node's own cause go takes it off the page", SHARES,
          "*(share._local.values() for share in self._shares))", "())", U_SHARES,
          ("test_a_cause_of_the_node_outlives_one_stores_release_of_it",)),
    Break("a node that one store does not prove is left out", CERTIFICATE,
          "        if kept is None or (_STRENGTH[line.state], line.flat) >", "        if (_STRENGTH[line.state], line.flat) > (0, False) and kept is None or kept and (_STRENGTH[line.state], line.flat) >",
          U_SET, ("test_what_one_store_proves_is_proven_and_every_node_of_any_store_is_named",)),
    # -- UNKNOWN IS FROZEN
    Break("a page that has just been made is open", "killswitch/gate/writer.py",
          '        self._synthetic: tuple[Cause, ...] = (_own("agent_start", "the agent has started and has no permit yet"),)\n',
          "        self._synthetic: tuple[Cause, ...] = ()\n", f"{U_GATE} {U_KEEPER}",
          ("test_unknown_is_frozen_from_the_first_moment", "test_unknown_is_frozen_before_the_first_read")),
    Break("a cluster without a flag is taken for an active one", KEEPER,
          '            self._fault(NOT_INITIALISED, "not_initialised", FAULT_SENTENCES[Finding.ABSENT])\n',
          "            self._gate.update((), epoch=1, permit_deadline_ns=self._cluster.clock() + 10**9)\n", U_KEEPER,
          ("test_unknown_is_frozen_when_the_cluster_is_not_initialised",)),
    Break("a flag that cannot be read closes nothing", KEEPER,
          '            self._fault(FLAG_UNREADABLE, "flag_unreadable", f"{error}; nothing was overwritten")\n',
          "            log.error(str(error))\n            self._gate.extend(self._cluster.clock() + 2 * 10**9)\n",
          f"{U_KEEPER} {NODES}",
          ("test_unknown_is_frozen_while_the_flag_cannot_be_read",
           "test_a_flag_of_an_unknown_version_is_frozen_and_never_overwritten")),
    Break("the journal is not read at start", KEEPER, "        self._known = journal.last\n", "        self._known = None\n",
          U_KEEPER, ("test_an_agent_restarted_while_frozen_stays_frozen_even_if_the_store_forgot",)),
    Break("a restarted agent opens before it has read", "agents/agent.py", START_PAUSE,
          "        self._gate.update((), epoch=0, permit_deadline_ns=self._clock() + 2 * 10**9)\n", NODES,
          ("test_unknown_is_frozen_for_an_agent_restarted_while_frozen",)),
    Break("a node trades before it was judged", "agents/agent.py", START_PAUSE, "", JUDGED,
          ("test_unknown_is_frozen_until_the_node_was_judged_once",)),
    Break("a missing flag is taken for a new cluster", "agents/decisions.py",
          "return Finding.ABSENT if known is None else Finding.LOST", "return Finding.ABSENT", f"{U_KEEPER} {NODES}",
          ("test_a_store_that_lost_its_data_is_told_again",
           "test_a_store_wiped_under_a_frozen_cluster_is_told_the_freeze_again")),
    Break("an older flag is believed", "agents/decisions.py", "        return Finding.REGRESSED\n", "        return Finding.ADOPT\n",
          U_KEEPER, ("test_a_store_set_back_is_not_believed",)),
    Break("a flag of another history is believed", "agents/decisions.py",
          "return Finding.ADOPT if stored_hash == known.head else Finding.REWRITTEN", "return Finding.ADOPT", U_KEEPER,
          ("test_a_rewritten_flag_is_not_believed",)),
    Break("a full disk is passed over", KEEPER,
          '            self._fault(JOURNAL_FAULT, "journal_unwritable", str(error))\n', "            log.error(str(error))\n",
          U_KEEPER, ("test_a_full_disk_keeps_the_node_frozen_and_says_so",)),
    Break("a damaged line of the journal is skipped", "agents/journal.py",
          "                raise JournalDamaged(\n", "                continue\n                raise JournalDamaged(\n", NODES,
          ("test_a_damaged_journal_keeps_the_agent_from_starting",)),
    Break("a page of another boot or clock is trusted", "killswitch/gate/layout.py",
          "def check_prefix(header: bytes, *, clock_id: int, boot_id: bytes) -> None:\n",
          "def check_prefix(header: bytes, *, clock_id: int, boot_id: bytes) -> None:\n    return\n", U_GATE,
          ("test_unknown_is_frozen_a_page_that_cannot_be_trusted_is_unavailable",)),
    Break("an attribute that is not stated matches nothing", "killswitch/core/scopes.py",
          "            if stated is not None and stated != value:\n", "            if stated != value:\n", U_GATE,
          ("test_a_scope_blocks_only_its_orders_and_unstated_attributes_match",)),
    Break("a line that cannot be used is passed over", "agents/link_server.py",
          "            self._events.on_freeze(\n                FreezeRequest(\n                    source=f\"router:{session.router}\",\n"
          "                    trigger=\"bad_input\"",
          "            (lambda _: None)(\n                FreezeRequest(\n                    source=f\"router:{session.router}\",\n"
          "                    trigger=\"bad_input\"", U_LINK, ("test_unknown_is_frozen_when_a_router_sends_nan",)),
    Break("a router keeps to itself that its book holds a NaN", LINK,
          '            return self._write(encode("freeze", trigger="bad_input", reason=str(error), scope="", metadata={}))\n',
          "            return True\n", NODES, ("test_a_routers_nan_freezes_the_whole_cluster",)),
    Break("a report that cannot be read counts as nothing held", "coordinator/rules.py",
          "    if snapshot.unreadable:\n", "    if False:\n", "tests/unit/test_coordinator.py",
          ("test_an_unreadable_report_freezes_without_any_rule",)),
    Break("a rule of the node that fails is skipped", "agents/risk/node_judgement.py",
          'return (self._fault(f"the rule {rule.name} failed: {error!r}"),)', "return ()", U_NODE,
          ("test_unknown_is_frozen_when_a_rule_raises_at_the_severity_that_the_settings_name",
           "test_unknown_is_frozen_when_a_rule_answers_nonsense")),
    Break("a rule of the node may take as long as it likes", "agents/risk/node_judgement.py",
          "        if not 0 <= took_ns <= self._budget_ns:\n", "        if False:\n", U_NODE,
          ("test_a_rule_that_is_late_is_a_breach_though_it_found_nothing",)),
    Break("nobody watches a rule that never answers", "agents/agent.py",
          "                self.monitor.watch()\n", "", JUDGED,
          ("test_unknown_is_frozen_when_a_rule_of_ones_own_never_answers",)),
    Break("a drawdown of a node only warns", "agents/risk/node_account_rule.py",
          'level="warning" if one.level is AlertLevel.WARNING else self._level_of(_CLASSES[one.measure]),',
          'level="warning",', f"{JUDGED} tests/unit/test_node_rules.py",
          ("test_a_drawdown_on_one_node_freezes_the_cluster", "test_drawdown_and_leverage_warn_and_freeze_at_their_levels")),
    Break("what was released freezes again at once", "agents/node_monitor.py",
          "        if accepted is not None and not _is_worse(finding, *accepted):\n", "        if False:\n", U_NODE,
          ("test_what_a_person_released_is_accepted_until_it_gets_worse",)),
    Break("what was released never freezes again", "agents/node_monitor.py",
          "    return not finding.value <= accepted_value * (ACCEPTED_MARGIN if accepted_value > 0 else 1.0)\n",
          "    return False\n", U_NODE, ("test_what_a_person_released_is_accepted_until_it_gets_worse",)),
    Break("a release opens a node whose rule still hangs", "agents/node_monitor.py",
          "                self._act([*self._standing.values(), late])\n",
          "                if late.source not in self._standing:\n"
          "                    self._act([*self._standing.values(), late])\n", U_NODE,
          ("test_unknown_is_frozen_when_a_person_releases_while_a_rule_still_hangs",)),
    Break("a pause is never lifted", "agents/node_monitor.py",
          "                self._actions.resume(source)\n", "                pass\n", f"{U_NODE} {JUDGED}",
          ("test_a_pause_lifts_itself_when_it_is_not_found_any_more",
           "test_a_pause_closes_one_node_tells_nobody_and_lifts_itself")),
    Break("a rule of one's own that cannot be had is left out", "agents/node_limits.py",
          "        own_rules=tuple(load_node_rules(limits.rules.node)),\n", "", JUDGED,
          ("test_a_rule_that_cannot_be_imported_keeps_the_agent_from_starting",)),
    Break("the age of an account's marks is not asked", "agents/risk/account_monitor.py",
          "        if now is not None and not ages.looked_ns <= now < ages.due_ns:  # is_due, without the call\n",
          "        if False:\n", "tests/unit/test_section_b_account_monitor.py",
          ("test_unknown_is_frozen__a_held_symbol_whose_mark_is_too_old_or_never_came",
           "test_unknown_is_frozen__a_feed_that_is_silent_altogether_is_found_by_a_look")),
    Break("the age of an exposure's marks is not asked", "agents/risk/exposure_book.py",
          "        elif ages.is_due(now):\n", "        elif False:\n", "tests/unit/test_exposure_book.py",
          ("test_unknown_is_frozen_for_a_held_symbol_whose_mark_is_too_old_or_never_came",)),
    # -- limits that change
    Break("a file that is not sound may loosen", "agents/risk/limits_change.py",
          'if not changes or any(change.direction != "tighter" for change in changes):', "if not changes:", U_CHANGE,
          ("test_a_file_that_is_not_sound_never_loosens_anything",
           "test_of_a_file_that_is_not_sound_what_tightens_is_taken_and_what_loosens_is_not")),
    Break("a half-written file is believed", "agents/risk/live_limits.py",
          "if change.outcome == \"applied\" and change.loosens and not asked and stamp != seen:", "if False:", U_LIVE,
          ("test_what_loosens_waits_until_the_file_was_the_same_at_two_looks",)),
    Break("what tightens waits like what loosens", "agents/risk/live_limits.py",
          "return self._take(tighter) if tighter.changes else None", "return None", U_LIVE,
          ("test_of_a_change_both_ways_what_tightens_holds_at_the_first_look_and_the_rest_at_the_second",)),
    Break("a loosening that cannot be written down holds up what tightens", "agents/risk/live_limits.py",
          "            return self._tighten(reading, taken)\n", "            return taken\n", U_LIVE,
          ("test_what_tightens_holds_though_what_loosens_beside_it_cannot_be_written_down",)),
    # -- a trading process
    Break("a strategy that is no text passes", "agents/risk/pretrade/order_strategies.py",
          "    if not isinstance(strategy, str):\n        sentence",
          "    if not isinstance(strategy, str):\n        return strategy\n        sentence", U_STRATEGIES,
          ("test_a_strategy_that_is_no_text_is_no_order",)),
    Break("a fill that names its order alone counts for nobody", CONTROLS,
          "names = self._strategies.executed(client_order_id, strategy)", 'names = (str(strategy or ""),)',
          U_STRATEGIES, ("test_fills_that_a_venue_tells_by_the_order_alone_count_for_its_strategy",)),
    Break("an amendment is of whatever strategy it says", CONTROLS,
          "own = self._strategies.of(client_order_id)", "own = None", U_STRATEGIES,
          ("test_a_disabled_strategy_amends_nothing_whoever_it_says_it_is",)),
    Break("a restart of a trading process forgets what it wrote down", PROCESS,
          "            self._state.restore()\n", "", U_STATE,
          ("test_a_restart_releases_nothing_and_tells_no_freeze_anew", "test_a_restart_enables_no_strategy",
           "test_a_restart_begins_no_day")),
    Break("a state that cannot be read is taken for a first start", "agents/risk/process_state.py",
          "            self._is_unreadable = True\n", "            return\n", U_STATE,
          ("test_unknown_is_frozen__a_state_that_cannot_be_read_freezes_and_says_what_to_do",)),
    Break("the breaker of a trading process is not asked", CONTROLS,
          "if refusal is None and self._breaker is not None:", "if False:", U_GATES,
          ("test_while_the_breaker_is_engaged_no_order_passes_and_nothing_counts",
           "test_a_breaker_that_is_half_open_lets_its_probes_pass_and_no_order_more")),
    Break("everything passes before the policy has decided", "agents/risk/pretrade/account_gates.py",
          "if self._policy.allows_growing_orders() is True or", "if self._policy.decision is None or", U_GATES,
          ("test_unknown_is_frozen__before_the_policy_has_decided_nothing_grows",)),
    Break("a market order without a price is worth one dollar a unit", PROCESS,
          "price_required=True", "price_required=False", "tests/unit/test_process_limits.py",
          ("test_a_market_order_counts_at_the_newest_price_and_without_one_it_is_refused",)),
    # -- NOTHING IS LOST
    Break("a file loosens in a process that writes nothing down", "agents/risk/live_limits.py",
          "return NOT_AUDITED if change.loosens else None", "return None", "tests/unit/test_process_limits.py",
          ("test_nothing_is_lost__without_an_audit_the_file_may_tighten_and_never_loosens",)),
    Break("a loosening holds though it could not be written down", "agents/risk/live_limits.py",
          "cannot_hold = self._put_in_force(change) if unwritten is None else None", "cannot_hold = self._put_in_force(change)",
          U_LIVE, ("test_nothing_loosens_that_cannot_be_written_down_and_what_tightens_holds_all_the_same",)),
    Break("a change of the flag leaves its history entry out", "killswitch/cluster.py",
          "                history_key: HistoryRecord.from_core(change.entry).to_bytes(),\n", "", U_FLAG,
          ("test_a_crash_anywhere_in_a_commit_leaves_the_old_flag_or_the_new",)),
    Break("a store that does not answer ends the freeze", "killswitch/cluster.py",
          "self._retrying(deadline_ns, Conflict, OutcomeUnknown, StoreUnavailable, give_up=give_up)(attempt)",
          "self._retrying(deadline_ns, Conflict)(attempt)", NODES,
          ("test_nothing_is_lost_when_etcd_is_killed_in_the_middle_of_a_freeze",)),
    Break("a restarted etcd starts from nothing", "killswitch/stores/_etcd_guard.py",
          'f"--data-dir={self._directory / DATA_NAME}"',
          'f"--data-dir={self._directory / DATA_NAME}-{__import__(\'time\').monotonic_ns()}"', STORES, ("test_a_killed_server_forgets_nothing_and_the_watch_goes_on",)),
    Break("a rule's freeze does not say by which figure", "coordinator/coordinator.py",
          '                "figure": reading.figure,\n', "", "tests/unit/test_coordinator.py",
          ("test_the_gross_rule_trips_exactly_once_and_leaves_its_figures",)),
    # -- A CANCEL ALWAYS PASSES
    Break("a pushed stop is not answered", LINK, '            "stopped",\n            epoch=stop.epoch,\n            cancelled=self',
          '            "ignored",\n            epoch=stop.epoch,\n            cancelled=self', U_LINK,
          ("test_a_pushed_stop_is_cancelled_and_answered",)),
    Break("what is left open is not cancelled again", LINK,
          "            retry = open_orders > 0 and time.monotonic() >= retry_at_s\n", "            retry = False\n", U_LINK,
          ("test_what_is_left_open_is_cancelled_again_until_it_is_gone",)),
)  # fmt: skip


def run_break(broken: Break) -> list[str]:
    """Apply one break to a copy of the tree and return what is wrong with the tests that should turn red."""
    with tempfile.TemporaryDirectory(prefix="break-") as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / name)
        path = tree / broken.path
        text = path.read_text()
        if broken.old not in text:
            return [f"the break does not fit {broken.path} any more"]
        path.write_text(text.replace(broken.old, broken.new))
        return [fault for test in broken.tests if (fault := _still_green(tree, broken.where, test))]


def _still_green(tree: Path, where: str, test: str) -> str:
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not docker", "-k", test]
    ran = subprocess.run([*words, *where.split()], cwd=tree, capture_output=True, text=True, check=False)
    if ran.returncode == 1 and ("FAILED" in ran.stdout or "ERROR" in ran.stdout):
        return ""
    return f"{test} stayed green (pytest ended with {ran.returncode}): {ran.stdout.strip().splitlines()[-1:]}"


def main() -> int:
    """Run all breaks, or those whose description holds a word given, and return the exit code."""
    wanted = [broken for broken in BREAKS if not sys.argv[1:] or any(word in broken.what for word in sys.argv[1:])]
    green = 0
    for broken in wanted:
        started = time.monotonic()
        faults = run_break(broken)
        green += bool(faults)
        print(f"{'GREEN' if faults else 'red  '} {time.monotonic() - started:5.1f} s  {broken.what}", flush=True)
        for fault in faults:
            print(f"      {fault}", flush=True)
    print(f"{len(wanted) - green} breaks turned their tests red, {green} did not")
    return 1 if green else 0


if __name__ == "__main__":
    sys.exit(main())
