# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_promote
short_description: Make a PostgreSQL standby the primary, guarded
version_added: 0.1.0
description:
  - Promotes a standby after it has been proved that it may be promoted. A server that is the primary already is left
    as it is.
  - It refuses, and changes nothing, when the server is no running standby, when its replay is paused or delayed, when
    it does not hold and has not replayed all that is required, when it belongs to another cluster or timeline, and
    when the old primary still answers as a primary.
  - All checks are made at once and returned. Check mode makes the same checks and the same waiting, and does not
    promote.
  - With O(state=armed) a process on the host, which needs neither Ansible nor its connection, waits for the primary to
    shut down and promotes the standby within milliseconds. It needs a proof for that, which it reads in the WAL of the
    standby; the stream has ended, all of it is replayed, and its last record is the primary's shutdown checkpoint.
options:
  state:
    description:
      - V(promoted), the standby is the primary afterwards. What an armed one does is awaited and verified, and where it
        does not promote itself it is disarmed and promoted in the ordinary way.
      - V(armed), it will promote itself when its primary shuts down, for O(timeout) seconds. It is armed for one
        stream, so when that ends in any other way than a clean shutdown it refuses for good.
      - V(disarmed), it will not promote itself. This fails, with RV(pending=true), when it is too late for that.
    type: str
    choices: [promoted, armed, disarmed]
    default: promoted
  require_lsn:
    description:
      - The position of the primary's last record, for a planned cutover the latest checkpoint location of the stopped
        primary.
      - The standby must hold, and have replayed, more than that. To stand at exactly this position is not enough,
        since a record's position is where it starts.
      - Up to half of O(timeout) is waited for it.
      - Without it nobody knows how much the standby lacks, therefore O(force=true) is needed then.
    type: str
  require_timeline:
    description: The timeline that the standby must be on.
    type: int
  require_system_identifier:
    description: The system identifier of the cluster that the standby must belong to.
    type: str
  primary:
    description:
      - The old primary, which is asked over the network whether it still is one. What is not given is taken from the
        upstream of the standby.
      - No answer (refused, timed out, unreachable) is fine, and so is an answer as a standby. An answer that tells no
        role, like a refused login or a server that is starting up, refuses without O(force=true).
    type: dict
    suboptions:
      host:
        description: Its host name or address.
        type: str
      port:
        description: Its port.
        type: int
      user:
        description: The account for replication.
        type: str
      passfile:
        description: A password file on the node that O(account) can read.
        type: path
  force:
    description:
      - Promote although it is not known how much the standby lacks (no O(require_lsn)), or although the old primary
        answers in a way that does not tell its role.
      - Before the promotion those complete segments here that the archive lacks are marked to be archived, since a
        dead primary cannot do it. The archive is asked by C(restore_command), from the newest on until it has one;
        without that command all of them are marked.
      - It waives nothing that is known. An old primary that answers as a primary, a paused replay, another cluster or
        a position that O(require_lsn) proves too old are refused all the same.
    type: bool
    default: false
  archive_again:
    description:
      - Names of WAL segments that the stopped old primary had not archived. After the promotion they are marked to be
        archived by the new primary, which has them marked as archived.
      - Its C(archive_command) must succeed when the archive has the same file already.
    type: list
    elements: str
    default: []
  timeout:
    description:
      - With O(state=armed) the seconds after which it disarms itself.
      - Otherwise seconds, of which half may go by in waiting for O(require_lsn), and what is left of the whole in
        waiting for the promotion.
      - The CHECKPOINT after the promotion may take as long again.
    type: int
    default: 60
extends_documentation_fragment:
  - hotspare.postgresql.node
attributes:
  check_mode:
    description: Makes the same decision and does not promote.
    support: full
  diff_mode:
    description: There is no difference in text to show.
    support: none
notes:
  - One task at a time works on a server, of this module, M(hotspare.postgresql.pg_server) and
    M(hotspare.postgresql.pg_rebuild). Whoever comes next waits for at most O(timeout), since the task of a run that
    died may go on for a while, and then fails with the process that is at work. Check mode does not wait. The process
    that O(state=armed) starts is not counted.
author:
  - hotspare contributors (@hotspare)
"""

EXAMPLES = r"""
- name: Promote the standby once it holds what the stopped primary wrote last
  hotspare.postgresql.pg_promote:
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
    service: postgresql@17-main
    require_lsn: "{{ stopped.shutdown.checkpoint_lsn }}"
    require_timeline: "{{ stopped.shutdown.timeline }}"
  become: true

- name: Have the standby promote itself as soon as its primary has shut down
  hotspare.postgresql.pg_promote:
    data_directory: /var/lib/postgresql/17/main
    service: postgresql@17-main
    state: armed
    timeout: 60
  become: true

- name: Promote although the dead primary cannot be asked how far it came
  hotspare.postgresql.pg_promote:
    data_directory: /var/lib/postgresql/17/main
    force: true
  become: true
"""

RETURN = r"""
checks:
  description: What was checked. Empty when the server is the primary already, and with O(state=disarmed).
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description:
        - The check, one of standby, system_identifier, timeline, replay, apply_delay, position, old_primary.
        - With O(state=armed) stream and primary instead of the last two.
      type: str
      returned: always
    ok:
      description: Whether it allows the promotion.
      type: bool
      returned: always
    detail:
      description: What was seen, and what to do next if it forbids the promotion.
      type: str
      returned: always
  sample:
    - name: position
      ok: true
      detail: it holds 0/30000A0 and replayed 0/30000A0, both must be past 0/3000028
old_timeline:
  description: The timeline before the promotion, V(null) when it is not known.
  returned: always
  type: int
  sample: 1
new_timeline:
  description: The timeline afterwards. V(null) in check mode when the server would be promoted.
  returned: always
  type: int
  sample: 2
switch_lsn:
  description: The position at which the new timeline left the old one. V(null) when nothing was promoted.
  returned: always
  type: str
  sample: 0/30000A0
seconds:
  description:
    - Seconds from the request until the server was out of recovery, also when an armed process asked for it.
    - 0 when nothing was promoted.
  returned: always
  type: float
  sample: 0.041
pending:
  description:
    - The server was asked and did not become the primary within O(timeout). The request stays in force and the server
      may become the primary at any moment, so the old primary must not be started.
  returned: always
  type: bool
  sample: false
kept_for_archive:
  description: Segments that are marked to be archived, see O(archive_again) and O(force).
  returned: always
  type: list
  elements: str
  sample: ["000000010000000000000003"]
armed:
  description:
    - What the process that was armed last says. V(null) when none was since the host booted, or when what it did is
      over because the server is a standby again.
  returned: always
  type: dict
  contains:
    state:
      description:
        - V(armed), then V(promoting) and V(promoted), or V(disarmed), V(expired), or V(refused) with the reason.
        - V(dead) when it was armed and its process is gone. It does not promote then.
      type: str
      returned: always
    alive:
      description: Whether its process is there.
      type: bool
      returned: always
    reason:
      description: Why it is not armed any more. V(null) while it is, and when it promoted.
      type: str
      returned: always
    since:
      description: When it was armed, UTC.
      type: str
      returned: always
    expires_in:
      description: Seconds until it disarms itself, negative when that is over.
      type: float
      returned: always
    pid:
      description: The process.
      type: int
      returned: always
    position:
      description: How far the primary had written when it was armed. The proof must be newer.
      type: str
      returned: always
    phases:
      description:
        - Seconds from the end of the stream until all was replayed (C(replayed)), the last record was read (C(proved))
          and the server was out of recovery (C(promoted)), as far as it came.
      type: dict
      returned: always
    proof:
      description: The last record as pg_waldump prints it. V(null) when none was read.
      type: str
      returned: always
    at:
      description:
        - The end of the stream (C(stream_ended)) and the end of recovery (C(writable)) by the clock of the host, in
          seconds since 1970.
      type: dict
      returned: always
    collected:
      description: Whether an earlier run has collected the promotion already.
      type: bool
      returned: always
  sample:
    state: promoted
    alive: false
    reason: null
    since: 2026-11-20 14:00:00 UTC
    expires_in: 52.1
    pid: 4711
    position: 0/3000060
    phases: {replayed: 0.0001, proved: 0.0052, promoted: 0.0391}
    proof: >-
      rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/03000060, prev 0/03000028, desc:
      CHECKPOINT_SHUTDOWN redo 0/3000060; tli 1; prev tli 1; fpw true
    at: {stream_ended: 1795183200.0123, writable: 1795183200.0514}
    collected: false
node:
  description: The state of the server afterwards, as M(hotspare.postgresql.pg_replication_state) returns it.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hotspare.postgresql.plugins.module_utils.arming import arm, collect, disarm
from ansible_collections.hotspare.postgresql.plugins.module_utils.lock import working
from ansible_collections.hotspare.postgresql.plugins.module_utils.promotion import Wanted
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import NODE_ARGUMENTS, instance_from_params
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import parse_lsn


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **NODE_ARGUMENTS,
            "state": {"type": "str", "choices": ["promoted", "armed", "disarmed"], "default": "promoted"},
            "require_lsn": {"type": "str"},
            "require_timeline": {"type": "int"},
            "require_system_identifier": {"type": "str"},
            "primary": {
                "type": "dict",
                "options": {
                    "host": {"type": "str"},
                    "port": {"type": "int"},
                    "user": {"type": "str"},
                    "passfile": {"type": "path"},
                },
            },
            "force": {"type": "bool", "default": False},
            "archive_again": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        require_lsn = parse_lsn(params["require_lsn"]) if params["require_lsn"] is not None else None
    except ValueError as error:
        module.fail_json(msg=f"require_lsn: {error}")
    wanted = Wanted(
        require_lsn=require_lsn,
        require_timeline=params["require_timeline"],
        require_system_identifier=params["require_system_identifier"],
        force=params["force"],
    )
    options = {"primary": params["primary"], "timeout": params["timeout"], "check_mode": module.check_mode}
    try:
        instance = instance_from_params(params)
        what = f"pg_promote state={params['state']}"
        with working(instance.data_directory, instance.name, what, params["timeout"], check_mode=module.check_mode):
            if params["state"] == "armed":
                result = arm(instance, wanted, **options)
            elif params["state"] == "disarmed":
                result = disarm(instance, check_mode=module.check_mode)
            else:
                result = collect(instance, wanted, archive_again=params["archive_again"], **options)
    except HotspareError as error:
        error.facts.pop("warnings", None)
        module.fail_json(msg=error.message, **error.facts)
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
