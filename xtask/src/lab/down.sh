# The only way down, used by the owner, by the keeper when the owner dies, and by `cargo xtask lab down`.
# Every process of a lab is in a cgroup of the lab from before its exec, and every namespace and mount lives only as
# long as those processes: killing the groups and removing them leaves nothing. No pid is ever signalled.
# Arguments: wait|now, the lab's directory, then patterns of its groups.
# wait: first block until standard input ends, which is when the owner closes it or dies; the word `keep` on it says
# that the lab is to outlive its owner.
when=$1 dir=$2
shift 2
[ "$when" = now ] || [ "$(cat)" != keep ] || exit 0
tries=0 seen=
while :; do
    left=
    for group in $*; do # unquoted: the patterns are expanded here, at each try
        [ -d "$group" ] || continue
        left="$left $group"
        if [ -e "$group/cgroup.kill" ]; then
            seen="$seen $(find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null)"
            echo 1 > "$group/cgroup.kill"
        fi
        find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
    done
    # A group is empty a moment before its last process has left its namespaces (Linux 6.18).
    if [ -z "$left" ]; then
        for pid in $seen; do
            ! grep -qs '^State:.[^ZX]' "/proc/$pid/status" || left="$left pid $pid"
        done
    fi
    [ -n "$left" ] || break
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { echo "this does not go away:$left" >&2; exit 1; }
    sleep 0.05
done
rm -rf "$dir"
