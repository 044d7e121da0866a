#!/bin/sh
# A group snapshot whose selector has matchExpressions alone is of every claim of the namespace.
#
# `VolumeGroupSnapshot.spec.source.selector` is a LabelSelector, and the API server takes both of its parts. The snapshot-controller
# 8.7.0 lists claims by `matchLabels` only: expressions are neither obeyed nor refused, and without labels nothing is left to select by.
# Claims that the expressions exclude are cut, too. Needs Go.
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
	"slices"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	snapshotscheme "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/scheme"
	"github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions"
	common "github.com/kubernetes-csi/external-snapshotter/v8/pkg/common-controller"
	"github.com/kubernetes-csi/external-snapshotter/v8/pkg/metrics"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	kubefake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/workqueue"
)

// bound is a claim of the namespace shop with its volume.
func bound(name string) []runtime.Object {
	claim := &v1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: "uid", Labels: map[string]string{"app": name}},
		Spec:       v1.PersistentVolumeClaimSpec{VolumeName: name},
		Status:     v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound},
	}
	volume := &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeSource: v1.PersistentVolumeSource{
				CSI: &v1.CSIPersistentVolumeSource{Driver: "driver", VolumeHandle: "volume-of-" + name},
			},
			ClaimRef: &v1.ObjectReference{Namespace: "shop", Name: name, UID: "uid"},
		},
		Status: v1.PersistentVolumeStatus{Phase: v1.VolumeBound},
	}
	return []runtime.Object{claim, volume}
}

// cut is which volumes a group snapshot with this selector is of.
func cut(selector *metav1.LabelSelector) []string {
	name := "class"
	group := &groupv1.VolumeGroupSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: "group", Namespace: "shop", UID: "uid", ResourceVersion: "1"},
		Spec: groupv1.VolumeGroupSnapshotSpec{
			Source: groupv1.VolumeGroupSnapshotSource{Selector: selector}, VolumeGroupSnapshotClassName: &name,
		},
	}
	class := &groupv1.VolumeGroupSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Driver: "driver", DeletionPolicy: "Delete",
	}
	clients, kube := fake.NewSimpleClientset(group, class), kubefake.NewSimpleClientset(append(bound("db"), bound("cache")...)...)
	snapshots, core := externalversions.NewSharedInformerFactory(clients, 0), informers.NewSharedInformerFactory(kube, 0)
	single, groups := snapshots.Snapshot().V1(), snapshots.Groupsnapshot().V1()
	limiter := workqueue.DefaultTypedControllerRateLimiter[string]
	controller := common.NewCSISnapshotCommonController(clients, kube,
		single.VolumeSnapshots(), single.VolumeSnapshotContents(), single.VolumeSnapshotClasses(),
		groups.VolumeGroupSnapshots(), groups.VolumeGroupSnapshotContents(), groups.VolumeGroupSnapshotClasses(),
		core.Core().V1().PersistentVolumeClaims(), core.Core().V1().PersistentVolumes(), nil,
		metrics.NewMetricsManager(), 0, limiter(), limiter(), limiter(), limiter(), false, true, true)
	stop := make(chan struct{})
	defer close(stop)
	snapshots.Start(stop)
	core.Start(stop)
	go controller.Run(1, stop, nil)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		contents, err := clients.GroupsnapshotV1().VolumeGroupSnapshotContents().List(context.Background(), metav1.ListOptions{})
		if err == nil && len(contents.Items) == 1 {
			handles := contents.Items[0].Spec.Source.VolumeHandles
			slices.Sort(handles)
			return handles
		}
	}
	return nil
}

func main() {
	if err := snapshotscheme.AddToScheme(scheme.Scheme); err != nil {
		panic(err)
	}
	fmt.Println("matchLabels app: db           ", cut(&metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}))
	expression := metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"db"}}
	fmt.Println("matchExpressions app in (db)  ",
		cut(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{expression}}))
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
grep -q '^matchLabels app: db  *\[volume-of-db\]$' said
grep -q '^matchExpressions app in (db)  *\[volume-of-cache volume-of-db\]$' said
