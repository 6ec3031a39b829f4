package tunnel

import (
	"encoding/json"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// statusOf returns the Status that the API server sent with a refusal, or one made of the HTTP
// status when it sent none.
func statusOf(resp *http.Response, body []byte) metav1.Status {
	var s metav1.Status
	if json.Unmarshal(body, &s) == nil && s.Message != "" {
		return s
	}
	reason := metav1.StatusReasonUnknown
	switch resp.StatusCode {
	case http.StatusForbidden:
		reason = metav1.StatusReasonForbidden
	case http.StatusUnauthorized:
		reason = metav1.StatusReasonUnauthorized
	case http.StatusNotFound:
		reason = metav1.StatusReasonNotFound
	case http.StatusServiceUnavailable:
		reason = metav1.StatusReasonServiceUnavailable
	}
	return metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    int32(resp.StatusCode),
		Reason:  reason,
		Message: "the API server answered " + resp.Status,
	}
}
