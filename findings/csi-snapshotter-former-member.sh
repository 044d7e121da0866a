#!/bin/sh
# A snapshot that was taken out of its group stays in the storage for ever.
#
# A group snapshot makes one VolumeSnapshot per volume. Once a tool has taken a member out of its group (owner reference and finalizer
# removed, the group's objects deleted with the policy Retain), the member looks like any other snapshot. When it is deleted with
# deletionPolicy Delete, csi-snapshotter 8.7.0 removes the VolumeSnapshotContent and asks the driver for nothing: its status still has
# the group's handle, and members are left to the deletion of their group, whose objects are gone. The same content without the handle
# is deleted in the storage first. Needs Go.
set -eu

VERSION=v8.7.0
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
echo "external-snapshotter $VERSION"

cat > "$work/main.go" <<'GO'
package main

import (
	"context"
	"fmt"
	"time"

	crdv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	"github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions"
	sidecar "github.com/kubernetes-csi/external-snapshotter/v8/pkg/sidecar-controller"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubefake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/util/workqueue"
)

const finalizer = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"

// driver counts what it is asked to delete.
type driver struct{ deleted []string }

func (d *driver) CreateSnapshot(context.Context, string, string, map[string]string, map[string]string) (string, string, time.Time, int64, bool, error) {
	panic("not asked for")
}

func (d *driver) DeleteSnapshot(_ context.Context, id string, _ map[string]string) error {
	d.deleted = append(d.deleted, id)
	return nil
}

func (d *driver) GetSnapshotStatus(context.Context, string, map[string]string) (bool, time.Time, int64, string, error) {
	return true, time.Now(), 1, "", nil
}

func deleteContent(group *string) (released bool, deleted []string) {
	handle, volume, ready, now := "snapshot-1", "volume-1", true, metav1.Now()
	content := &crdv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{
			Name: "content", ResourceVersion: "1", DeletionTimestamp: &now, Finalizers: []string{finalizer},
			Annotations: map[string]string{"snapshot.storage.kubernetes.io/volumesnapshot-being-deleted": "yes"},
		},
		Spec: crdv1.VolumeSnapshotContentSpec{
			DeletionPolicy: crdv1.VolumeSnapshotContentDelete, Driver: "driver",
			Source:            crdv1.VolumeSnapshotContentSource{VolumeHandle: &volume},
			VolumeSnapshotRef: v1.ObjectReference{Name: "former-member", Namespace: "shop", UID: "uid"},
		},
		Status: &crdv1.VolumeSnapshotContentStatus{
			SnapshotHandle: &handle, ReadyToUse: &ready, VolumeGroupSnapshotHandle: group,
		},
	}
	clients := fake.NewSimpleClientset(content)
	informers := externalversions.NewSharedInformerFactory(clients, 0)
	snapshots, groups := informers.Snapshot().V1(), informers.Groupsnapshot().V1()
	storage := &driver{}
	limiter := workqueue.DefaultTypedControllerRateLimiter[string]
	controller := sidecar.NewCSISnapshotSideCarController(clients, kubefake.NewSimpleClientset(), "driver",
		snapshots.VolumeSnapshotContents(), snapshots.VolumeSnapshotClasses(), storage, nil, time.Minute, 0,
		"snapshot", -1, "group", -1, false, limiter(), true,
		groups.VolumeGroupSnapshotContents(), groups.VolumeGroupSnapshotClasses(), limiter())
	stop := make(chan struct{})
	defer close(stop)
	informers.Start(stop)
	go controller.Run(1, stop, nil)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && !released; time.Sleep(100 * time.Millisecond) {
		now, err := clients.SnapshotV1().VolumeSnapshotContents().Get(context.Background(), "content", metav1.GetOptions{})
		released = err != nil || len(now.Finalizers) == 0
	}
	return released, storage.deleted
}

func main() {
	group := "group-1"
	for _, handle := range []*string{nil, &group} {
		released, deleted := deleteContent(handle)
		fmt.Printf("was in a group: %v; the content may go: %v; deleted in the storage: %v\n", handle != nil, released, deleted)
	}
}
GO
cd "$work"
cat > go.mod <<MOD
module finding

go 1.26.0

require github.com/kubernetes-csi/external-snapshotter/v8 $VERSION
MOD
GOFLAGS=-mod=mod go mod tidy > /dev/null 2>&1
# The fake API server of client-go streams no lists.
KUBE_FEATURE_WatchListClient=false GOFLAGS=-mod=mod go run . 2> /dev/null | tee said
grep -qx 'was in a group: false; the content may go: true; deleted in the storage: \[snapshot-1\]' said
grep -qx 'was in a group: true; the content may go: true; deleted in the storage: \[\]' said
