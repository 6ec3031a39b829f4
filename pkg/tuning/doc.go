// Package tuning adjusts Go's runtime to what detour's processes do: mostly wait, in the memory and
// on the processors of somebody else's machine. Each of its files holds one adjustment, which a
// process turns on with one call: [AdaptGOMAXPROCS], [LimitMemory] and [IdleMemory].
package tuning
